//! `orders`: takes orders and reserves their goods with `inventory`. All instances share one book of orders.
//!
//! | request | answer |
//! |---|---|
//! | `POST /orders {sku, quantity}` | 201 the order · 409 out of stock · 422 no such article · 502, 503, 504 inventory gave no answer |
//! | `GET /orders/ID` | 200 the order · 404 |
//! | `GET /orders?limit=N` | the newest N orders, 20 where left out |
//!
//! An order that is accepted and its event `order.placed` `{orderId, sku, quantity, status, createdAt}` are one transaction;
//! the outbox publishes it to `EVENTS`, where that is set.
//!
//! An order is written down as `pending` before inventory is asked and settled afterwards, under an id that inventory takes
//! its goods for only once. So a repeated request with the same `Idempotency-Key`, whichever instance it reaches and
//! whatever died in between, finishes the same order and gets the same answer.
//!
//! `STOCK_API` or `INVENTORY_URL` is where inventory is.

use std::io;
use std::time::{Duration, Instant};

use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use rusqlite::{Connection, OptionalExtension, Row};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::kit::outbox::{self, Event, Outbox};
use crate::kit::{Context, Input, Kit, Problem, Store, client, env, innermost};

/// How long inventory may take where the request brings no deadline.
const PATIENCE: Duration = Duration::from_secs(2);
/// The header with which the gateway marks an answer that inventory did not give.
const FALLBACK: &str = "meshctl-fallback";
const IDEMPOTENCY_KEY: &str = "idempotency-key";

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS \"order\" (
        order_id   TEXT PRIMARY KEY,
        key        TEXT UNIQUE,
        sku        TEXT NOT NULL,
        quantity   INTEGER NOT NULL,
        status     TEXT NOT NULL,
        trace_id   TEXT NOT NULL,
        created_at TEXT NOT NULL
    ) STRICT;
";
const COLUMNS: &str = "order_id, sku, quantity, status, trace_id, created_at";

#[derive(Clone)]
struct Orders {
    kit: Kit,
    store: Store,
    outbox: Outbox,
    client: reqwest::Client,
    inventory: String,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Order {
    order_id: String,
    sku: String,
    quantity: u32,
    status: Status,
    trace_id: String,
    created_at: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
enum Status {
    /// Inventory has not answered.
    Pending,
    /// The goods are reserved.
    Confirmed,
    /// Accepted without knowing whether there are goods: the gateway answered in inventory's place.
    StockUnknown,
    OutOfStock,
    UnknownSku,
}

const STATUSES: [(Status, &str); 5] = [
    (Status::Pending, "pending"),
    (Status::Confirmed, "confirmed"),
    (Status::StockUnknown, "stockUnknown"),
    (Status::OutOfStock, "outOfStock"),
    (Status::UnknownSku, "unknownSku"),
];

pub(crate) async fn serve(kit: Kit) -> io::Result<()> {
    let inventory = env("STOCK_API").or_else(|| env("INVENTORY_URL")).ok_or_else(|| {
        io::Error::other("neither STOCK_API nor INVENTORY_URL says where inventory is; in a topology: env: { STOCK_API: { urlOf: inventory } }")
    })?;
    let store = Store::open(kit.service(), &format!("{SCHEMA}{}", outbox::SCHEMA)).map_err(io::Error::other)?;
    let (outbox, publishing) = Outbox::start(&kit, &store).map_err(io::Error::other)?;
    let orders = Orders {
        store,
        outbox,
        client: client()?,
        inventory: format!("{}/reservations", inventory.trim_end_matches('/')),
        kit: kit.clone(),
    };
    let admin = Router::new().route("/state", get(state)).with_state(orders.clone());
    let served = kit.serve(public(orders), admin).await;
    publishing.end().await;
    served
}

fn public(orders: Orders) -> Router {
    Router::new().route("/orders", get(list).post(place)).route("/orders/{id}", get(show)).with_state(orders)
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    sku: String,
    quantity: u32,
}

async fn place(
    State(orders): State<Orders>,
    context: Context,
    headers: HeaderMap,
    Input(wanted): Input<Wanted>,
) -> Result<Response, Problem> {
    if wanted.sku.is_empty() || wanted.sku.len() > 64 || !(1..=1_000_000).contains(&wanted.quantity) {
        let detail = "an order is {\"sku\": \"1 to 64 characters\", \"quantity\": 1 to 1000000}";
        return Err(Problem::new(422, "invalid-order", detail));
    }
    let key = key_of(&headers)?;
    let order = Order {
        order_id: uuid::Uuid::now_v7().to_string(),
        sku: wanted.sku,
        quantity: wanted.quantity,
        status: Status::Pending,
        trace_id: context.trace_id().to_owned(),
        created_at: jiff::Timestamp::now().to_string(),
    };
    let (sku, quantity) = (order.sku.clone(), order.quantity);
    let order = orders.store.write(move |c| write_down(c, key.as_deref(), &order)).await?;
    if (&order.sku, order.quantity) != (&sku, quantity) {
        let detail = format!("this Idempotency-Key belongs to an order for {} of {}", order.quantity, order.sku);
        return Err(Problem::new(422, "idempotency-key-reused", detail).with("orderId", order.order_id));
    }
    if order.status != Status::Pending {
        return Ok(answer(order));
    }
    let status = orders.reserve(&context, &order).await?;
    let outbox = orders.outbox.clone();
    let settled = orders.store.write(move |c| settle(c, &order.order_id, status, &outbox, &context)).await?;
    Ok(answer(settled))
}

impl Orders {
    /// Asks inventory for the goods of `order`.
    async fn reserve(&self, context: &Context, order: &Order) -> Result<Status, Problem> {
        let now = Instant::now();
        let left = context.left(now).unwrap_or(PATIENCE);
        let sent = self
            .client
            .post(&self.inventory)
            .headers(context.onward(now))
            // Asking again for the same order takes nothing more, so whoever carries the request may repeat it.
            .header(IDEMPOTENCY_KEY, &order.order_id)
            .timeout(left)
            .json(&json!({"sku": order.sku, "quantity": order.quantity, "orderId": order.order_id}))
            .send()
            .await;
        let pending = |status, why: String| {
            let detail = format!("order {} is pending: asking inventory for its goods {why}", order.order_id);
            Err(Problem::new(status, "inventory-unavailable", detail).with("orderId", order.order_id.as_str()))
        };
        let response = match sent {
            Err(why) if why.is_timeout() => return pending(504, format!("took longer than {} ms", left.as_millis())),
            Err(why) => return pending(502, format!("failed: {}", innermost(&why))),
            Ok(response) => response,
        };
        if response.headers().get(FALLBACK).is_some_and(|value| value == "true") {
            return Ok(Status::StockUnknown);
        }
        let status = response.status().as_u16();
        let code = response.json::<Value>().await.ok().and_then(|body| Some(body.get("code")?.as_str()?.to_owned()));
        match (status, code.as_deref()) {
            (200..=299, _) => Ok(Status::Confirmed),
            (409, Some("out-of-stock")) => Ok(Status::OutOfStock),
            (404, Some("unknown-sku")) => Ok(Status::UnknownSku),
            (503 | 504, code) => pending(status, format!("was answered {status} {}", code.unwrap_or_default())),
            (_, code) => pending(502, format!("was answered {status} {}", code.unwrap_or_default())),
        }
    }
}

/// The answer to whoever placed `order`: the same whenever and wherever it is asked for again.
fn answer(order: Order) -> Response {
    let location = format!("/orders/{}", order.order_id);
    let problem = |status, code, detail: String| {
        Problem::new(status, code, detail).with("orderId", order.order_id.as_str()).into_response()
    };
    match order.status {
        Status::OutOfStock => {
            problem(409, "out-of-stock", format!("there are not {} of {}", order.quantity, order.sku))
        }
        Status::UnknownSku => problem(422, "unknown-sku", format!("there is no article {:?}", order.sku)),
        Status::Pending | Status::Confirmed | Status::StockUnknown => {
            (StatusCode::CREATED, [(header::LOCATION, location)], Json(shown(&order))).into_response()
        }
    }
}

async fn show(State(orders): State<Orders>, Path(id): Path<String>) -> Result<Json<Value>, Problem> {
    let wanted = id.clone();
    let order = orders.store.read(move |c| find(c, &wanted)).await?;
    let order = order.ok_or_else(|| Problem::new(404, "unknown-order", format!("there is no order {id:?}")))?;
    Ok(Json(shown(&order)))
}

#[derive(Deserialize)]
struct Limit {
    limit: Option<u32>,
}

async fn list(State(orders): State<Orders>, Query(Limit { limit }): Query<Limit>) -> Result<Json<Value>, Problem> {
    let limit = limit.unwrap_or(20).min(1000);
    let found = orders
        .store
        .read(move |c| {
            // The ids are in the order of their making.
            c.prepare_cached(&format!("SELECT {COLUMNS} FROM \"order\" ORDER BY order_id DESC LIMIT ?1"))?
                .query_map([limit], Order::from_row)?
                .collect::<rusqlite::Result<Vec<_>>>()
        })
        .await?;
    Ok(Json(json!({"items": found.iter().map(shown).collect::<Vec<_>>()})))
}

async fn state(State(orders): State<Orders>) -> Result<Json<Value>, Problem> {
    let outbox = orders.outbox.clone();
    let (counts, outbox) = orders
        .store
        .read(move |c| {
            let counts = c
                .prepare_cached("SELECT status, count(*) FROM \"order\" GROUP BY status")?
                .query_map([], |row| Ok((row.get::<_, String>(0)?, Value::from(row.get::<_, i64>(1)?))))?
                .collect::<rusqlite::Result<serde_json::Map<_, _>>>()?;
            Ok((counts, outbox.view(c)?))
        })
        .await?;
    let mut view = orders.kit.view();
    view["orders"] = counts.into();
    view["outbox"] = outbox;
    view["inventory"] = orders.inventory.into();
    Ok(Json(view))
}

/// An order as it is shown: what was stored, and what is known of its goods in one word.
fn shown(order: &Order) -> Value {
    let stock = match order.status {
        Status::Confirmed => "reserved",
        Status::OutOfStock | Status::UnknownSku => "none",
        Status::Pending | Status::StockUnknown => "unknown",
    };
    let mut view = json!(order);
    view["stock"] = stock.into();
    view
}

fn key_of(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get(IDEMPOTENCY_KEY) else { return Ok(None) };
    match value.to_str() {
        Ok(key) if (1..=255).contains(&key.len()) => Ok(Some(key.to_owned())),
        _ => Err(Problem::new(422, "invalid-idempotency-key", "an Idempotency-Key is 1 to 255 printable characters")),
    }
}

impl Order {
    fn placed(&self) -> Event {
        let Self { order_id, sku, quantity, status, created_at, .. } = self;
        Event {
            kind: "order.placed",
            key: order_id.clone(),
            payload: json!({
                "orderId": order_id, "sku": sku, "quantity": quantity, "status": status, "createdAt": created_at,
            }),
        }
    }

    fn from_row(row: &Row<'_>) -> rusqlite::Result<Self> {
        let status: String = row.get(3)?;
        Ok(Self {
            order_id: row.get(0)?,
            sku: row.get(1)?,
            quantity: row.get(2)?,
            status: STATUSES.iter().find(|(_, word)| *word == status).map_or(Status::Pending, |(status, _)| *status),
            trace_id: row.get(4)?,
            created_at: row.get(5)?,
        })
    }
}

impl Status {
    fn word(self) -> &'static str {
        STATUSES.iter().find(|(status, _)| *status == self).map_or("pending", |(_, word)| word)
    }
}

/// Writes down `order` as pending, or finds the one that was written down under the same key.
fn write_down(connection: &Connection, key: Option<&str>, order: &Order) -> rusqlite::Result<Order> {
    if let Some(key) = key {
        let before = connection
            .prepare_cached(&format!("SELECT {COLUMNS} FROM \"order\" WHERE key = ?1"))?
            .query_row([key], Order::from_row)
            .optional()?;
        if let Some(before) = before {
            return Ok(before);
        }
    }
    connection
        .prepare_cached(&format!("INSERT INTO \"order\" (key, {COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)"))?
        .execute((
            key,
            &order.order_id,
            &order.sku,
            order.quantity,
            order.status.word(),
            &order.trace_id,
            &order.created_at,
        ))?;
    Ok(order.clone())
}

/// Settles a pending order, and tells of it where it is accepted; one that another instance has settled meanwhile stays as
/// that one left it. The order's trace is that of the request which settled it, as is its event's.
fn settle(
    connection: &Connection,
    order_id: &str,
    status: Status,
    outbox: &Outbox,
    context: &Context,
) -> rusqlite::Result<Order> {
    let settled = connection
        .prepare_cached("UPDATE \"order\" SET status = ?2, trace_id = ?3 WHERE order_id = ?1 AND status = 'pending'")?
        .execute((order_id, status.word(), context.trace_id()))?;
    let order = find(connection, order_id)?.ok_or(rusqlite::Error::QueryReturnedNoRows)?;
    if settled == 1 && matches!(status, Status::Confirmed | Status::StockUnknown) {
        outbox.put(connection, context, &order.placed())?;
    }
    Ok(order)
}

fn find(connection: &Connection, order_id: &str) -> rusqlite::Result<Option<Order>> {
    connection
        .prepare_cached(&format!("SELECT {COLUMNS} FROM \"order\" WHERE order_id = ?1"))?
        .query_row([order_id], Order::from_row)
        .optional()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kit::courier::Courier;

    fn pending(order_id: &str) -> Order {
        Order {
            order_id: order_id.into(),
            sku: "book".into(),
            quantity: 1,
            status: Status::Pending,
            trace_id: "t".into(),
            created_at: "2026-01-01T00:00:00Z".into(),
        }
    }

    #[test]
    fn one_key_is_one_order_and_the_first_settlement_stands() {
        let connection = Connection::open_in_memory().expect("a database");
        connection.execute_batch(SCHEMA).expect("a schema");
        let first = write_down(&connection, Some("k"), &pending("a")).expect("written");
        let again = write_down(&connection, Some("k"), &pending("b")).expect("found");
        assert_eq!(again, first);
        assert_eq!(find(&connection, "b"), Ok(None));
        assert_eq!(write_down(&connection, None, &pending("c")).expect("written").order_id, "c");
        assert_eq!(write_down(&connection, None, &pending("d")).expect("written").order_id, "d");

        let context = Context::of(&HeaderMap::new(), Instant::now());
        let settle = |id, status| settle(&connection, id, status, &Outbox::none(), &context).map(|order| order.status);
        assert_eq!(settle("a", Status::Confirmed), Ok(Status::Confirmed));
        assert_eq!(settle("a", Status::OutOfStock), Ok(Status::Confirmed));
    }

    #[test]
    fn every_status_comes_back_from_its_word() {
        let connection = Connection::open_in_memory().expect("a database");
        connection.execute_batch(SCHEMA).expect("a schema");
        for (status, word) in STATUSES {
            let order = Order { status, ..pending(word) };
            assert_eq!(write_down(&connection, None, &order).map(|_| ()), Ok(()));
            assert_eq!(find(&connection, word), Ok(Some(order)));
        }
    }

    /// Whatever answers at the address that this returns.
    async fn serving(router: Router) -> String {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        tokio::spawn(async move { axum::serve(listener, router).await });
        url
    }

    #[tokio::test]
    async fn an_order_that_is_accepted_is_told_of_once_and_no_other() {
        let folder = tempfile::tempdir().expect("a folder");
        let courier = Courier::start().await;
        let reserve = async |Json(wanted): Json<Value>| match wanted["sku"].as_str() {
            Some("book") => StatusCode::CREATED.into_response(),
            _ => Problem::new(409, "out-of-stock", "there is none").into_response(),
        };
        let inventory = serving(Router::new().route("/reservations", axum::routing::post(reserve))).await;
        let schema = format!("{SCHEMA}{}", outbox::SCHEMA);
        let store = Store::at(&folder.path().join("orders.db"), &schema).expect("a store");
        let kit = Kit::for_test("orders", "orders-1");
        let (outbox, publishing) = Outbox::to(&kit, &store, Some(courier.url.clone())).expect("an outbox");
        let client = client().expect("a client");
        let inventory = format!("{inventory}/reservations");
        let orders = Orders { kit, store, outbox, client: client.clone(), inventory };
        let url = serving(public(orders)).await;
        let place = async |key: &str, sku: &str| {
            let request = client.post(format!("{url}/orders")).header("idempotency-key", key);
            let answer = request.json(&json!({"sku": sku, "quantity": 2})).send().await.expect("an answer");
            (answer.status().as_u16(), answer.json::<Value>().await.expect("JSON"))
        };

        let (status, placed) = place("first", "book").await;
        assert_eq!(status, 201, "{placed}");
        assert_eq!(place("first", "book").await, (201, placed.clone()));
        assert_eq!(place("none", "unicorn").await.0, 409);
        assert_eq!(place("last", "book").await.0, 201);
        // Those of one instance come in their order, or at the same time.
        let accepted = courier.until(2).await;
        publishing.end().await;
        assert_eq!(courier.accepted().len(), 2);
        let event =
            accepted.iter().find(|event| event.payload["orderId"] == placed["orderId"]).expect("the first order");
        assert_eq!((&event.payload["sku"], &event.payload["quantity"]), (&json!("book"), &json!(2)));
        let trace = placed["traceId"].as_str().expect("a trace");
        assert!(event.header("traceparent").contains(trace), "{} is not of {trace}", event.header("traceparent"));
    }
}
