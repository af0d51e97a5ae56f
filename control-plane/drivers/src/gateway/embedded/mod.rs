//! meshctl's own gateway, spoken to over its admin socket.

pub mod place;
