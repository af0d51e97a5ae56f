//! The API's document is checked in, so that a change of the API is seen where it is made.

use std::path::Path;

#[test]
fn the_document_that_is_checked_in_is_the_one_that_is_served() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../api/openapi.json");
    let mut served = serde_json::to_string_pretty(&meshctl_daemon::openapi()).expect("JSON");
    served.push('\n');
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &served).expect("control-plane/api/openapi.json can be written");
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        kept == served,
        "control-plane/api/openapi.json is not what is served; run: UPDATE=1 cargo test -p meshctl-daemon --test openapi"
    );
}
