"""Tables, pictures and reports made from the files of finished runs: numpy only, never torch.

`comparison.summarise(folder)` turns a comparison folder into numbers, `tables` prints them, and `report` writes the
pictures and the self-contained page. matplotlib, scipy and rich are imported inside the functions that need them.
"""
