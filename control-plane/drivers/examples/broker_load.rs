//! How much the embedded broker carries: `broker_load STATE_DIR [MESSAGES] [BATCH] [IN_FLIGHT]` against a running one. 100-byte
//! payloads; every number is of durable messages, confirmed or settled.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use meshctl_drivers::broker::embedded::Client;
use meshctl_drivers::broker::{Broker, BrokerError, ChannelSpec, Outcome, Publish, Settlement};
use meshctl_model::message::Message;

const CHANNEL: &str = "load";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BrokerError> {
    let mut arguments = std::env::args().skip(1);
    let state_dir = PathBuf::from(arguments.next().unwrap_or_else(|| ".".to_owned()));
    let mut number = |default: usize| arguments.next().and_then(|text| text.parse().ok()).unwrap_or(default);
    let (messages, batch, in_flight) = (number(500_000), number(100), number(32));
    let broker = Arc::new(Client::new(&state_dir));
    broker.remove(CHANNEL, true).await?;
    let spec = ChannelSpec {
        name: CHANNEL.to_owned(),
        partitions: 8,
        retention: Duration::from_secs(3600),
        max_size_bytes: 4 << 30,
        idempotency_window: Duration::from_secs(600),
        groups: vec!["all".to_owned()],
    };
    broker.ensure(&spec).await?;
    publish(&broker, messages, batch, in_flight).await?;
    consume(&broker, messages).await?;
    both(&broker, messages, batch, in_flight).await?;
    broker.remove(CHANNEL, true).await
}

fn message(number: usize) -> Publish {
    let message = Message {
        id: format!("01936b9a-0000-7000-8000-{number:012x}"),
        key: None,
        headers: vec![("ce-type".to_owned(), "load".to_owned())],
        payload: vec![b'x'; 100].into(),
    };
    Publish { message, idempotency_key: None }
}

/// Publishes with so many requests under way, and says how fast, and how long each took.
async fn publish(broker: &Arc<Client>, messages: usize, batch: usize, in_flight: usize) -> Result<(), BrokerError> {
    let next = Arc::new(AtomicUsize::new(0));
    let started = Instant::now();
    let publishers: Vec<_> = (0..in_flight)
        .map(|_| {
            let (broker, next) = (Arc::clone(broker), Arc::clone(&next));
            tokio::spawn(async move {
                let mut took = Vec::new();
                loop {
                    let at = next.fetch_add(batch, Ordering::Relaxed);
                    if at >= messages {
                        return Ok::<_, BrokerError>(took);
                    }
                    let asked = Instant::now();
                    broker.publish(CHANNEL, (at..(at + batch).min(messages)).map(message).collect()).await?;
                    took.push(asked.elapsed());
                }
            })
        })
        .collect();
    let mut took = Vec::new();
    for publisher in publishers {
        took.extend(publisher.await.map_err(|why| BrokerError::Unknown(why.to_string()))??);
    }
    let rate = messages as f64 / started.elapsed().as_secs_f64();
    took.sort_unstable();
    let at = |share: f64| took.get((took.len() as f64 * share) as usize).copied().unwrap_or_default();
    println!(
        "published {rate:.0}/s in batches of {batch}, {in_flight} under way: p50 {:?}, p99 {:?}",
        at(0.5),
        at(0.99)
    );
    Ok(())
}

async fn consume(broker: &Arc<Client>, messages: usize) -> Result<(), BrokerError> {
    let mut consumer = broker.consume(CHANNEL, "all", 20_000).await?;
    let started = Instant::now();
    let mut left = messages;
    let mut deliveries = Vec::with_capacity(1000);
    let mut settling = tokio::task::JoinSet::new();
    while left > 0 {
        let count = consumer.deliveries.recv_many(&mut deliveries, 1000).await;
        if count == 0 {
            return Err(BrokerError::Unreachable("the consumer ended".to_owned()));
        }
        left -= count.min(left);
        let processed = |delivery: &meshctl_drivers::broker::Delivery| Settlement {
            position: delivery.position,
            outcome: Outcome::Processed,
        };
        let settlements = deliveries.iter().map(processed).collect();
        deliveries.clear();
        let settler = Arc::clone(&consumer.settler);
        settling.spawn(async move { settler.settle(settlements).await });
    }
    while let Some(settled) = settling.join_next().await {
        settled.map_err(|why| BrokerError::Unknown(why.to_string()))??;
    }
    println!("consumed and settled {:.0}/s", messages as f64 / started.elapsed().as_secs_f64());
    Ok(())
}

async fn both(broker: &Arc<Client>, messages: usize, batch: usize, in_flight: usize) -> Result<(), BrokerError> {
    println!("both at once:");
    let consuming = consume(broker, messages);
    let publishing = publish(broker, messages, batch, in_flight);
    tokio::try_join!(consuming, publishing).map(drop)
}
