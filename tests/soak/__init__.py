"""The soak: an hour of steady work, and beside it, at the same time, the same work without safe_refs (`make soak`).

    python -m tests.soak ── starts ──> the side `ours`:    a driver, its Ray, safe_refs at a moderate, fixed rate
          │                └─ starts ─> the side `control`: a driver, its Ray, the same objects passed in-band to actors
          │ reads /proc of the processes of both, every few seconds; the drivers report how long their calls took
          └ compares slopes: what grows on our side, and not on the other, is a leak

What always holds: both sides begin each round at the same moment and in the same order; nothing of safe_refs' registry runs on the
control's Ray; what is judged comes after a warm-up. See docs/soak.md.
"""
