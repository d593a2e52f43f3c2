"""What the tests of the numerical core share. Holds no test."""
