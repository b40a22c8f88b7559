"""Payloads and handles as releases wrote them, and the script that did."""
