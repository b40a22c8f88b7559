"""The one room that touches Ray's private API, and what safe_refs wants of Ray beyond its everyday calls.

| file | what is in it |
|---|---|
| `workers` | this process and its connection; who owns what; who is dead |
| `control` | all that Ray's control service is asked, each question with its bound |
| `requests` | calls that may wait without a limit, made by another thread |
| `classes` | classes of actors whose handles come from elsewhere |
| `cluster` | nodes; finding and starting actors of ours |
| `environments` | what actors and tasks of ours inherit of the processes that start them |
| `objects` | values, sizes, places, what is inside them |
| `raw` | an object's bytes, to be stored again as they are |
| `actors` | handles of actors |
| `counts` | Ray's reference counts, and how to make this process report to an owner |
| `trial` | a trial of what `counts` needs, before it touches anything |
| `exits` | how this process learns that it is about to end |
| `serializing` | Ray's own serialization in this thread, and reducers of ours in its table |
| `client` | what differs in a Ray Client |
| `serve`, `store` | Serve's responses; figures of the object stores |
| `native` | what the others share: how to get at Ray's core worker and its control service |

Each function that goes beyond Ray's public API says why, since which Ray it has been seen to work, and what happens without it.
tests/core/test_ray_facts.py tries each with the Ray at hand, and `make test-oldest` with the oldest that we support.

What always holds: nothing here imports Ray before somebody else has. No reference can exist until then.
"""
