//! How a service calls another: plain HTTP to the address it was given, whatever the environment says of proxies.

use std::error::Error;
use std::io;

/// # Errors
/// When the client cannot be set up.
pub(crate) fn client() -> io::Result<reqwest::Client> {
    reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().map_err(io::Error::other)
}

/// The cause beneath the wrappings: `Connection refused`.
pub(crate) fn innermost(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
