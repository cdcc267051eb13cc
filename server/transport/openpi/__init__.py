"""The WebSocket endpoint for openpi clients."""
