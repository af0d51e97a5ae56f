//! The pictures of the README, taken of the real program: `cargo run -p meshctl-tests --example picture`.
//!
//! A shop under a little load, with a dead letter and a breaker that an operator has opened.

use meshctl_tests::{Load, Screen, System, repository, send};

fn main() {
    let system = System::new();
    let port = system.port(0).to_string();
    let system = system.with("SHOP_PORT", &port).with("NO_COLOR", "1");
    let file = repository().join("manifests/topologies/shop.yaml");
    system.run(&["apply", &file.to_string_lossy(), "--yes"]).expect(0);
    let load = Load::start(&system.url("/inventory/book"), 2);
    system.run(&["channel", "publish", "order.placed", "no JSON"]).expect(0);
    system.run(&["breaker", "trip", "gateway:shipping", "--ttl", "10m", "--reason", "the carrier moves"]).expect(0);
    for _ in 0..5 {
        let body = br#"{"sku":"book","quantity":1}"#.to_vec();
        send("POST", &system.url("/orders"), &[("content-type", "application/json")], body).expect("an answer");
    }
    load.pass(500);
    let mut screen = Screen::start(&system, &["tui"], (110, 30));
    screen.shows(&["shop", "inventory"]);
    // Rates are over ten seconds: a picture before that would show a system that has just begun.
    std::thread::sleep(std::time::Duration::from_secs(8));
    println!("{}", screen.text());
    screen.press(":traces\r");
    screen.wait("the traces", |text| text.lines().nth(1).is_some_and(|line| line.contains("traces")));
    println!("{}", screen.text());
    load.finish();
}
