"""The gRPC transport: the service of presage.v1, its interceptor, its codec and the control stream."""
