"""`safe-refs demo`: the library's main job on real files, on a small Ray of its own.

`run.py` is the whole; `three_ways.py` and `hand_over.py` are its two acts. `producer.py` and `consumer.py` run as processes of
their own, which `child.py` starts up, and talk through a `channel.py`. `figures.py` is what comes out, `screen.py` how it looks.

What always holds: nothing in the library imports this package; `rich`, `grpcio` and `redis` are imported only when the demo runs;
whatever the demo starts (Ray, processes, files, Redis keys) it ends itself, by its own handle, however it ends.
"""
