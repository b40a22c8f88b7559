"""Anchoring: the owners of objects learn who borrows them, so that no lease and no reader depends on the process it came through.

What it is for. Ray keeps an object alive for the processes that its owner knows, and a borrower reports the processes to which it
passed a reference only when it drops its own. Without this wing a lease that a borrower pinned is lost when that borrower ends, also
in order; and a reference that somebody resolved is dead when the registry is killed. `leases()` shows the first by `depends_on`.

How: another process, a relay, holds the reference for some milliseconds, so that its holder can drop it, report, and have it again
(hold, touch zero, give back: `relays` shows the three steps).

What it costs. A `dumps` of a borrowed reference takes 1.7 times that of an owned one, 2.2 times in a tight loop; and 15 ms where the
registry had let go of the object within the last two seconds, as with a payload that is made anew when its last is released. A shard
anchors some thousand references a second, whether in leases of one or of a hundred; `loads` waits where it is more than a second
behind. Each round stops all calls to the shard for about 4 ms, for 256 references at most. Two relay actors of 50 MB run while a
registry holds leases, and for 20 s more, a third while borrowers pin, and two spare ones when one of them does not respond; who
starts one waits a second or two. A `dumps` of owned references and a `loads` cost nothing but a note. What was resolved and released
within a fifth of a second is freed a tenth of a second later. `SAFE_REFS_ANCHORING=0`, where the registry starts and where `dumps` is
called, turns it off; so does a Ray without the private calls that it needs (`_ray.counts.can_anchor`).

A borrower B pins, and then a reader R resolves:

    owner          B                     relays                shard                    R
      │            │ ── hold ──────────► │ (clients')            │                        │
      │            │ ── pin ───────────────────────────────────► │  depends on B          │
      │ ◄─ report ─│ touch zero          │                       │                        │
      │ ◄──────────┼── B, given back ─── │                       │                        │
      │            │                     │ ◄─ hold ───────────── │  a round: is B's       │
      │ ◄──────────┼─────────────────────┼──────────── report ── │  pin known? anchored   │
      │            │                     │ (a pair)              │ ◄─────────── resolve ── │
      │            │                     │ ◄─ hold ───────────── │  the next round        │
      │ ◄──────────┼─────────────────────┼─────── report of R ── │                        │

| file | what is in it |
|---|---|
| `relays` | the method; the actor `SafeRefsRelay`; how a process calls relays |
| `part` | `Anchoring`, the shard's part: events, and the calls `anchor_now`, `give_back`, `touch` |
| `unanchored`, `handed_out` | pure: which leases are due when; which objects have been handed out |
| `pace` | pure: whether readers have to wait |
| `rounds`, `touching`, `returning` | the shard's threads: a round; the loan and the touch; step 3 |
| `answering`, `parting` | which owners answer; what is held until they do, although its lease has ended |
| `outcomes` | what a round has found for its leases |
| `let_go` | pure: which objects a shard let go of a moment ago, so that it is unsure about a pin |
| `borrower` | `Borrower`, the client's part: before and after a pin |
| `lending` | pure: a borrower's loan, from the relay's answer to its end |
| `reports`, `dependents` | pure: what was reported when; which leases depend on this process |
| `holders`, `loans` | what a borrower asks of shards; the thread that takes its loans back, and looks after them |
| `keeping` | what a process keeps for a second, as a shard was unsure |
| `exits`, `delaying` | the orderly end of a process; the actor `SafeRefsExitDelay`, which gives an actor the time for it |

Parts, for `assembly`: `part.Anchoring(shard, anchors)`, where `anchors` is the setting `anchoring` of the process that starts the
registry, and `borrower.Borrower(session)`.
"""
