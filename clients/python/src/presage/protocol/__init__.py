"""What both clients share: the codec, requests, retries and uploads of presage.v1."""
