//! Where a gateway's files are, inside the folder that it is given; both ends of its sockets use it.

/// The last snapshot that was live, as JSON.
pub const SNAPSHOT: &str = "snapshot.json";
/// HTTP for the control plane: snapshots in, status, metrics and events out.
pub const ADMIN_SOCKET: &str = "admin.sock";
/// Where a newer gateway process asks for the listening sockets.
pub const HANDOVER_SOCKET: &str = "handover.sock";
