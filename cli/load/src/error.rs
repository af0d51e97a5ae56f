//! Why a run did not begin. Nothing has been sent by then.

use std::io;
use std::net::SocketAddr;

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A number or a name of the plan that no run can have.
    #[error("{0}")]
    Plan(String),
    /// `at` counts characters from 1 within `part` (`path`, `body`, `header accept`).
    #[error("request `{name}`, {part}, character {at}: {problem}")]
    Template { name: String, part: String, at: usize, problem: String },
    #[error(
        "{connections} connections need {needed} descriptors, and this process may have {limit}: raise the hard limit \
         (`ulimit -Hn`, LimitNOFILE= of a unit) or ask for at most {possible} connections"
    )]
    Descriptors { connections: u32, needed: u64, limit: u64, possible: u64 },
    #[error(
        "{connections} connections to {address} need as many local ports, and this machine gives out {ports}: widen \
         `sysctl net.ipv4.ip_local_port_range`, or ask for at most {ports} connections"
    )]
    Ports { connections: u32, address: SocketAddr, ports: u32 },
    #[error("cannot connect to {address}: {source}; is anything listening there?")]
    Connect { address: SocketAddr, source: io::Error },
    #[error("{what}: {source}")]
    Machine { what: &'static str, source: io::Error },
}
