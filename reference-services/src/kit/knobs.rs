//! The knobs: how an operator makes an instance slow, failing, hanging or dead, at run time and on its admin port only.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Kit, Problem};

/// How an instance behaves. `PUT /knobs` replaces all of them: a field left out is as it was made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Knobs {
    /// Every answer is held up this long,
    latency_ms: u64,
    /// and a random time up to this one longer.
    latency_jitter_ms: u64,
    /// The share of requests that fail, 0 to 1,
    error_rate: f64,
    /// with this status.
    error_status: u16,
    /// Nothing is answered, health checks included, until this is off again.
    pub(super) hang: bool,
    /// Health checks fail; requests are still answered.
    pub(super) not_ready: bool,
    /// The process ends at once, by SIGABRT.
    crash: bool,
    /// Messages are refused with 503,
    refuse: bool,
    /// and the wish to be asked again after so many seconds.
    retry_after_s: u32,
    /// A message whose payload has all of these fields is rejected with 422: `{"sku": "lamp"}`.
    poison: Map<String, Value>,
    /// And so is this share of all messages, 0 to 1: always the same ones, for whether a message is poison is up to the message.
    poison_rate: f64,
}

impl Default for Knobs {
    fn default() -> Self {
        Self {
            latency_ms: 0,
            latency_jitter_ms: 0,
            error_rate: 0.0,
            error_status: 503,
            hang: false,
            not_ready: false,
            crash: false,
            refuse: false,
            retry_after_s: 1,
            poison: Map::new(),
            poison_rate: 0.0,
        }
    }
}

/// What happens to one request.
pub(super) enum Effect {
    None,
    Delay(Duration),
    Fail(u16, Duration),
    Hang,
}

impl Knobs {
    /// # Errors
    /// Names the field that is wrong.
    pub(super) fn parse(json: &[u8]) -> Result<Self, String> {
        let knobs: Self = serde_json::from_slice(json).map_err(|why| why.to_string())?;
        for (name, share) in [("errorRate", knobs.error_rate), ("poisonRate", knobs.poison_rate)] {
            if !(0.0..=1.0).contains(&share) {
                return Err(format!("{name} is {share}, which is not a share from 0 to 1"));
            }
        }
        if !(400..=599).contains(&knobs.error_status) {
            return Err(format!("errorStatus is {}, which is not an error: 400 to 599", knobs.error_status));
        }
        Ok(knobs)
    }

    /// Ends the process where a crash is asked for; before anybody is answered, as a real one would.
    pub(super) fn crash_if_asked(&self) {
        if self.crash {
            std::process::abort();
        }
    }

    pub(super) fn effect(&self) -> Effect {
        if self.hang {
            return Effect::Hang;
        }
        let jitter = if self.latency_jitter_ms == 0 { 0 } else { rand::random_range(0..=self.latency_jitter_ms) };
        let delay = Duration::from_millis(self.latency_ms.saturating_add(jitter));
        if self.error_rate > 0.0 && rand::random::<f64>() < self.error_rate {
            Effect::Fail(self.error_status, delay)
        } else if delay.is_zero() {
            Effect::None
        } else {
            Effect::Delay(delay)
        }
    }

    /// # Errors
    /// The answer to a message while messages are refused.
    pub(super) fn refusal(&self) -> Result<(), Problem> {
        if self.refuse {
            return Err(Problem::new(503, "refused", "messages are refused on purpose").retry_after(self.retry_after_s));
        }
        Ok(())
    }

    /// # Errors
    /// The answer to a message that is held to be poison.
    pub(super) fn poisoning(&self, id: &str, payload: &Value) -> Result<(), Problem> {
        let meant = !self.poison.is_empty() && self.poison.iter().all(|(name, value)| payload.get(name) == Some(value));
        if meant || share_of(id) < self.poison_rate {
            return Err(Problem::new(422, "poison", format!("message {id} is rejected on purpose")));
        }
        Ok(())
    }
}

/// A number from 0 up to 1, ever the same for one `id`.
fn share_of(id: &str) -> f64 {
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    // The upper half is as evenly spread as the whole, and exact in a float.
    f64::from((hasher.finish() >> 32) as u32) / (f64::from(u32::MAX) + 1.0)
}

/// `GET /knobs` and `PUT /knobs`.
pub(super) fn routes(kit: Kit) -> Router {
    Router::new().route("/knobs", get(show).put(turn)).with_state(kit)
}

async fn show(State(kit): State<Kit>) -> axum::Json<Knobs> {
    axum::Json(kit.0.knobs.borrow().clone())
}

async fn turn(State(kit): State<Kit>, body: Bytes) -> Response {
    match Knobs::parse(&body) {
        Err(why) => Problem::new(422, "invalid-knobs", why).into_response(),
        Ok(knobs) => {
            knobs.crash_if_asked();
            kit.0.knobs.send_replace(knobs.clone());
            axum::Json(knobs).into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_as_it_was_made() {
        assert_eq!(Knobs::parse(b"{}"), Ok(Knobs::default()));
        let knobs = Knobs::parse(br#"{"errorRate": 1, "errorStatus": 500}"#).expect("knobs");
        assert!(matches!(knobs.effect(), Effect::Fail(500, time) if time.is_zero()));
        let knobs = Knobs::parse(br#"{"latencyMs": 5, "latencyJitterMs": 5}"#).expect("knobs");
        let Effect::Delay(time) = knobs.effect() else { panic!("not held up") };
        assert!((5..=10).contains(&time.as_millis()), "{time:?}");
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        for (json, name) in [
            (r#"{"errorRate": 1.5}"#, "errorRate"),
            (r#"{"poisonRate": -0.1}"#, "poisonRate"),
            (r#"{"errorStatus": 200}"#, "errorStatus"),
            (r#"{"latency": 5}"#, "latency"),
            ("", "EOF"),
        ] {
            let why = Knobs::parse(json.as_bytes()).expect_err(json);
            assert!(why.contains(name), "{json} is refused with {why:?}");
        }
    }

    #[test]
    fn a_share_of_the_messages_is_poison_and_always_the_same_ones() {
        let knobs = Knobs::parse(br#"{"poisonRate": 0.25}"#).expect("knobs");
        let poison = |rate| {
            let knobs = Knobs { poison_rate: rate, ..knobs.clone() };
            (0..1000).filter(|id| knobs.poisoning(&id.to_string(), &Value::Null).is_err()).collect::<Vec<_>>()
        };
        let quarter = poison(0.25);
        assert!((200..300).contains(&quarter.len()), "{}", quarter.len());
        assert_eq!(poison(0.25), quarter);
        assert!(quarter.iter().all(|id| poison(0.5).contains(id)));
        assert_eq!((poison(0.0).len(), poison(1.0).len()), (0, 1000));
    }

    #[test]
    fn poison_is_what_has_all_the_named_fields() {
        let knobs = Knobs::parse(br#"{"poison": {"sku": "lamp", "quantity": 2}}"#).expect("knobs");
        let poison = |payload: Value| knobs.poisoning("id", &payload).is_err();
        assert!(poison(serde_json::json!({"sku": "lamp", "quantity": 2, "orderId": "a"})));
        assert!(!poison(serde_json::json!({"sku": "lamp", "quantity": 1})));
        assert!(!poison(serde_json::json!({"sku": "lamp"})));
        assert!(!poison(Value::Null));
    }
}
