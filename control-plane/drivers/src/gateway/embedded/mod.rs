//! meshctl's own gateway, spoken to over its admin socket.
