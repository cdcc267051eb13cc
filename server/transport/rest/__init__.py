"""The REST transport: routes, middleware, schemas of requests and replies, and the OpenAPI document."""
