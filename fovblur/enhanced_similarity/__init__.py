"""The text-enhanced similarity of recordings to images: api -> op -> one backend module -> kernel."""
