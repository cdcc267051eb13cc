"""How callers reach the application: gRPC, REST, openpi; keys, uploads and health."""
