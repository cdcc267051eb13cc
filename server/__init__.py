"""The service: a world model and a planner behind gRPC and REST.

The rooms, from the outside in; each imports only what stands below it:

- `serving`: settings to a running service
- `transport/`: gRPC, REST and openpi; keys, uploads, health; `gateway` is what every call goes through
- `service/`: the application, free of transports and of torch: planning, prediction, embedding, sessions, goals
- `recording/`: the flight recorder
- `engine/`: an engine as the front sees it: messages, process, admission, pool
- `observability/`: metrics and traces
- `values/`: requests, replies, images and tensors, defined once
- `errors`, `config`

`worker/` is what runs inside an engine process, and the only room that imports torch, networks and planners. It shares
`engine/messages` and `values/` with the front, and nothing in the front imports it.
"""
