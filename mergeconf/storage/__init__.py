"""How do bytes get in from and out to files, exactly and atomically? Knows no mathematics.

`safetensors_in` reads headers, `pickles_in` what torch.save wrote (with `zip_entries`, `unpickle`
and `state_dict`), `read_files` reads tensors' bytes, `layout` decides where each output tensor
lies, `target` decides whether a folder may be written, `journal` remembers what is finished,
`output` writes.
"""
