"""A driver that leaves Ray and lives on."""

from __future__ import annotations

# A driver that has threads, so that nothing is anchored when it pins; it imported `shutdown` before safe_refs was there.
LEAVES = """
import json, os, signal, sys, threading, time
import ray
from ray import shutdown
import safe_refs
from tests.support.values import outcome, value
address, owner, *args = sys.argv[1:]
threading.Thread(target=time.sleep, args=(300,), daemon=True).start()

def connect():
    return ray.init(address=address, log_to_driver=False, logging_level="error")

def borrow(number):
    [ref] = ray.get(ray.get_actor(owner, namespace="test").give.remote(value(number)))
    return ref
"""
