//! Snapshots that come and go, gateways that end and take over, and what can be watched meanwhile.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use meshctl_drivers::gateway::Gateway as _;
use meshctl_drivers::gateway::conformance::{Subject, suite};
use meshctl_drivers::gateway::embedded::EmbeddedGateway;
use meshctl_model::snapshot::{Listener, Serves};
use support::*;

#[tokio::test]
async fn the_driver_conforms() {
    let folder = tempfile::tempdir().expect("a folder");
    let listen = free_address();
    let gateway = Gateway::start(folder.path(), listen);
    let absent = EmbeddedGateway::new("absent", folder.path().join("nowhere"));
    suite(&Subject { gateway: &gateway.driver, listen, absent: &absent }).await;
}

#[tokio::test]
async fn two_thousand_swaps_fail_no_request() {
    let origins = [Origin::saying("a").await, Origin::saying("b").await, Origin::saying("c").await];
    let mut snapshot = snapshot(free_address(), &[origins[0].address]);
    let gateway = Gateway::serving(&snapshot).await;
    let load = Load::on(gateway.address, 8);
    load.goes_on(100).await;
    let policy = snapshot.routes[0].policy.clone();
    for generation in 2..2_002u64 {
        snapshot.generation = generation;
        let keep = generation as usize % 3;
        snapshot.services.insert("web".into(), endpoints(&[origins[keep].address, origins[(keep + 1) % 3].address]));
        // Routes, edges and listeners come and go, too.
        let extra = format!("/extra-{}/*", generation % 7);
        snapshot.routes =
            vec![route("everything", "/*", "gateway:web", &policy), route(&extra, &extra, "gateway:web", &policy)];
        snapshot.order_routes();
        snapshot.listeners.truncate(1);
        if generation % 100 == 0 {
            snapshot.listeners.push(Listener { address: free_address(), serves: Serves::Edge("gateway:web".into()) });
        }
        assert_eq!(gateway.push(&snapshot).await.generation, generation);
    }
    let (succeeded, failed) = load.stop().await;
    assert_eq!(failed, Vec::<String>::new());
    assert!(succeeded > 1_000, "{succeeded}");
    assert!(origins.iter().all(|origin| origin.seen() > 0));
}

#[tokio::test]
async fn a_removed_listener_closes_and_a_new_one_opens() {
    let origin = Origin::saying("ok").await;
    let (first, second) = (free_address(), free_address());
    let mut snapshot = snapshot(first, &[origin.address]);
    let gateway = Gateway::serving(&snapshot).await;
    let mut kept = connect(first).await;
    assert_eq!(whole(kept.send_request(get("/")).await.expect("an answer")).await.body(), "ok");
    snapshot.listeners[0].address = second;
    snapshot.generation = 2;
    gateway.push(&snapshot).await;
    assert_eq!(ask(second, get("/")).await.body(), "ok");
    assert!(tokio::net::TcpStream::connect(first).await.is_err());
}

#[tokio::test]
async fn it_serves_from_disk_and_from_deep_folders() {
    let origin = Origin::saying("saved").await;
    let folder = tempfile::tempdir().expect("a folder");
    let deep = folder.path().join("a-folder-with-a-long-name/".repeat(8));
    std::fs::create_dir_all(&deep).expect("made");
    let address = free_address();
    let gateway = Gateway::start(&deep, address);
    let mut saved = snapshot(address, &[origin.address]);
    (saved.revision, saved.generation) = (4, 10);
    gateway.push(&saved).await;
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(deep.join("admin.sock")).expect("there").permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
    drop(gateway); // by SIGKILL: nothing is tidied up
    let gateway = Gateway::start(&deep, address);
    assert_eq!(ask(address, get("/")).await.body(), "saved");
    // A control plane that has forgotten goes on from what it is told here.
    let status = gateway.status().await;
    assert_eq!((status.revision, status.generation), (4, 10));
    saved.generation = 9;
    let refusal = gateway.driver.push(&saved).await.expect_err("older").to_string();
    assert!(refusal.contains("generation 9 is older than generation 10"), "{refusal}");
    saved.generation = 11;
    assert_eq!(gateway.push(&saved).await.generation, 11);
    drop(gateway);
    std::fs::write(deep.join("snapshot.json"), "{\"topology\": \"torn").expect("written");
    let gateway = Gateway::start(&deep, address);
    assert_eq!(gateway.status().await.generation, 0, "a torn file is not served from");
    assert!(deep.join("snapshot.json.unusable").exists());
}

#[tokio::test]
async fn a_disk_that_cannot_be_written_does_not_stop_a_swap() {
    let origin = Origin::saying("live").await;
    let mut snapshot = snapshot(free_address(), &[]);
    let gateway = Gateway::serving(&snapshot).await;
    // A folder where the temporary file should be stands for a full disk; root may write everything else.
    std::fs::create_dir(gateway.dir.join("snapshot.json.tmp")).expect("made");
    snapshot.services.insert("web".into(), endpoints(&[origin.address]));
    snapshot.generation = 2;
    assert_eq!(gateway.push(&snapshot).await.generation, 2);
    assert_eq!(ask(gateway.address, get("/")).await.body(), "live");
    assert!(gateway.metrics().await.contains("meshctl_gateway_snapshot_unsaved 1\n"));
}

#[tokio::test]
async fn a_newer_gateway_takes_over_under_load() {
    let origin = Origin::saying("ok").await;
    let folder = tempfile::tempdir().expect("a folder");
    let address = free_address();
    let mut snapshot = snapshot(address, &[origin.address]);
    let mut gateway = Gateway::start(folder.path(), address);
    gateway.push(&snapshot).await;
    let load = Load::on(address, 8);
    // Connections that come and go all the time: those in a queue at the moment of the handover are the ones at risk.
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let connected = Arc::new(AtomicU64::new(0));
    let comers: Vec<_> = (0..4)
        .map(|_| {
            let (stop, connected) = (Arc::clone(&stop), Arc::clone(&connected));
            tokio::spawn(async move {
                while !stop.load(SeqCst) {
                    assert_eq!(ask(address, get("/")).await.status(), 200);
                    connected.fetch_add(1, SeqCst);
                }
            })
        })
        .collect();
    for round in 0..5 {
        load.goes_on(50).await;
        let next = Gateway::start(folder.path(), address);
        let before = std::mem::replace(&mut gateway, next);
        assert_eq!(before.ended().await, Some(0), "round {round}");
        let status = gateway.status().await;
        assert_eq!((status.pid, status.generation), (gateway.child.id(), snapshot.generation));
        snapshot.generation += 1;
        gateway.push(&snapshot).await;
        load.goes_on(50).await;
    }
    stop.store(true, SeqCst);
    for comer in comers {
        comer.await.expect("every connection was served");
    }
    let (_, failed) = load.stop().await;
    assert_eq!(failed, Vec::<String>::new());
    assert!(connected.load(SeqCst) > 100);
}

#[tokio::test]
async fn asked_to_end_it_lets_requests_end() {
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let held = Arc::clone(&gate);
    let origin = Origin::new(move |_, _| {
        let held = Arc::clone(&held);
        async move {
            held.acquire().await.expect("open").forget();
            say(200, "ended well")
        }
    })
    .await;
    let patient = with_policy(snapshot(free_address(), &[origin.address]), |policy| {
        policy.deadline = "60s".parse().expect("a span");
        policy.attempt_timeout = policy.deadline;
    });
    let gateway = Gateway::serving(&patient).await;
    let address = gateway.address;
    let mut idle = connect(address).await;
    gate.add_permits(1);
    whole(idle.send_request(get("/")).await.expect("an answer")).await;
    let under_way = tokio::spawn(ask(address, get("/")));
    gateway.until("under way", |status| status.edges[0].in_flight == 1).await;
    gateway.terminate();
    // Idle connections are closed at once, the listener too; the request goes on.
    while idle.ready().await.is_ok() {
        tokio::task::yield_now().await;
    }
    while tokio::net::TcpStream::connect(address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    gate.add_permits(1);
    let answer = under_way.await.expect("joined");
    assert_eq!((answer.status().as_u16(), answer.headers()["connection"].to_str().expect("text")), (200, "close"));
    let dir = gateway.dir.clone();
    assert_eq!(gateway.ended().await, Some(0));
    assert!(!dir.join("admin.sock").exists());
}

#[tokio::test]
async fn one_that_ends_leaves_the_sockets_of_another_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::start(folder.path(), free_address());
    // As a successor's that never got to say that it accepts.
    let others = ["admin.sock", "handover.sock"].map(|name| {
        let (path, new) = (folder.path().join(name), folder.path().join("another"));
        let socket = std::os::unix::net::UnixListener::bind(&new).expect("bound");
        std::fs::rename(new, &path).expect("moved");
        (socket, path)
    });
    gateway.terminate();
    assert_eq!(gateway.ended().await, Some(0));
    for (_socket, path) in &others {
        assert!(path.exists(), "{}", path.display());
    }
}

#[tokio::test]
async fn two_gateways_do_not_share_a_port() {
    let origin = Origin::saying("ok").await;
    let snapshot = snapshot(free_address(), &[origin.address]);
    let first = Gateway::serving(&snapshot).await;
    let folder = tempfile::tempdir().expect("a folder");
    let second = Gateway::start(folder.path(), first.address);
    let status = second.push(&snapshot).await;
    let why = format!("address already in use by gateway (pid {})", first.child.id());
    assert_eq!(status.refused, [(first.address, why)]);
    drop(first);
    // It is tried again from time to time.
    second.until("it has the port now", |status| status.refused.is_empty()).await;
    assert_eq!(ask(second.address, get("/")).await.body(), "ok");
}

#[tokio::test]
async fn metrics_count_by_route_and_edge() {
    let origin = Origin::new(async |number, _| say(if number < 2 { 500 } else { 200 }, "")).await;
    let mut snapshot = snapshot(free_address(), &[origin.address]);
    snapshot.routes[0].name = r#"GET "quoted"/*"#.into();
    let gateway = Gateway::serving(&snapshot).await;
    for _ in 0..5 {
        ask(gateway.address, get("/")).await;
    }
    let page = gateway.metrics().await;
    for line in [
        r#"meshctl_route_requests_total{route="GET \"quoted\"/*",class="2xx"} 3"#,
        r#"meshctl_route_requests_total{route="GET \"quoted\"/*",class="5xx"} 2"#,
        r#"meshctl_edge_requests_total{edge="gateway:web",class="2xx"} 3"#,
        r#"meshctl_edge_request_duration_seconds_count{edge="gateway:web"} 5"#,
        r#"meshctl_edge_request_duration_seconds_bucket{edge="gateway:web",le="+Inf"} 5"#,
        r#"meshctl_edge_attempt_failures_total{edge="gateway:web"} 2"#,
        r#"meshctl_edge_breaker_state{edge="gateway:web",state="closed"} 1"#,
        "meshctl_gateway_snapshot_generation 1",
        "meshctl_gateway_connections_total 5",
        "process_open_fds ",
    ] {
        assert!(page.contains(line), "{line} in {page}");
    }
    let status = gateway.until("connections closed", |status| status.connections == 0).await;
    let edge = &status.edges[0];
    assert_eq!((edge.requests, edge.failures), (5, 2));
    let latencies = &edge.recent.latencies;
    assert_eq!((edge.recent.requests, edge.recent.errors, latencies.count()), (5, 2, 5));
    assert!(latencies.quantile_ms(0.99) >= latencies.quantile_ms(0.5) && latencies.quantile_ms(0.5) > Some(0.0));
    let route = &status.routes[0];
    assert_eq!((route.recent.requests, route.recent.errors, route.in_flight, route.queued), (5, 2, 0, 0));
}

#[tokio::test]
async fn drained_waits_for_a_websocket_too() {
    // Covered for requests by the suite; an upgraded connection counts for as long as it is open.
    let (address, ended) = (free_address(), Duration::from_millis(50));
    let listener = tokio::net::TcpListener::bind(address).await.expect("bound");
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut head = [0; 2_048];
        let _read = tokio::io::AsyncReadExt::read(&mut stream, &mut head).await;
        let agreed = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n";
        tokio::io::AsyncWriteExt::write_all(&mut stream, agreed).await.expect("sent");
        let _held = tokio::io::AsyncReadExt::read(&mut stream, &mut head).await;
    });
    let gateway = Gateway::serving(&snapshot(free_address(), &[address])).await;
    let mut request = get("/");
    request.headers_mut().insert("upgrade", "x".parse().expect("a value"));
    request.headers_mut().insert("connection", "upgrade".parse().expect("a value"));
    let response = connect(gateway.address).await.send_request(request).await.expect("an answer");
    assert_eq!(response.status(), 101);
    let tunnel = hyper::upgrade::on(response).await.expect("upgraded");
    let id = ["web-0".to_owned()];
    assert!(gateway.driver.drained(&id, ended).await.is_err());
    drop(tunnel);
    gateway.driver.drained(&id, Duration::from_secs(20)).await.expect("drained");
}
