//! `shipping`: sends the goods once for each invoice that was issued. All instances share one book of shipments.
//!
//! | request | answer |
//! |---|---|
//! | `POST /events/invoice-issued` `{orderId, invoiceId, sku, quantity}` as a CloudEvent | 200 `{duplicate}` · 400, 422 cannot be understood |
//! | `GET /shipments/ORDERID` | 200 the shipment · 404 not yet, or no such order |
//!
//! That the message was received and the shipment are one transaction.

use std::io;

use axum::extract::{FromRef, Path, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use rusqlite::{Connection, OptionalExtension};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::kit::inbox::{self, Delivery, Effect, Inbox};
use crate::kit::{Context, Kit, Problem, Store};

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS shipment (
        order_id    TEXT PRIMARY KEY,
        shipment_id TEXT NOT NULL,
        invoice_id  TEXT NOT NULL,
        sku         TEXT NOT NULL,
        quantity    INTEGER NOT NULL,
        trace_id    TEXT NOT NULL,
        shipped_at  TEXT NOT NULL
    ) STRICT;
";

#[derive(Clone)]
struct Shipping {
    kit: Kit,
    store: Store,
    inbox: Inbox,
}

/// What shipping reads of `invoice.issued`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Issued {
    order_id: String,
    invoice_id: String,
    sku: String,
    quantity: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Shipment {
    shipment_id: String,
    order_id: String,
    invoice_id: String,
    sku: String,
    quantity: u32,
    trace_id: String,
    shipped_at: String,
}

pub(crate) async fn serve(kit: Kit) -> io::Result<()> {
    let store = Store::open(kit.service(), &format!("{SCHEMA}{}", inbox::SCHEMA)).map_err(io::Error::other)?;
    let shipping = Shipping { inbox: Inbox::new(&kit), kit: kit.clone(), store };
    let admin = Router::new().route("/state", get(state)).with_state(shipping.clone());
    kit.serve(public(shipping), admin).await
}

fn public(shipping: Shipping) -> Router {
    Router::new()
        .route("/events/invoice-issued", post(receive))
        .route("/shipments/{order_id}", get(show))
        .with_state(shipping)
}

async fn receive(
    State(shipping): State<Shipping>,
    context: Context,
    Delivery { id, payload: issued }: Delivery<Issued>,
) -> Result<Json<Value>, Problem> {
    let shipment = Shipment {
        shipment_id: uuid::Uuid::now_v7().to_string(),
        order_id: issued.order_id,
        invoice_id: issued.invoice_id,
        sku: issued.sku,
        quantity: issued.quantity,
        trace_id: context.trace_id().to_owned(),
        shipped_at: jiff::Timestamp::now().to_string(),
    };
    let told = json!({"orderId": shipment.order_id, "messageId": id.name(), "traceId": shipment.trace_id});
    let effect = shipping.store.write(move |c| Inbox::once(c, &id, |c| send(c, &shipment))).await?;
    if effect == Effect::Applied {
        shipping.kit.debug(format_args!("goods sent"), told);
    }
    Ok(effect.answer())
}

async fn show(State(shipping): State<Shipping>, Path(order_id): Path<String>) -> Result<Json<Shipment>, Problem> {
    let wanted = order_id.clone();
    let shipment = shipping.store.read(move |c| find(c, &wanted)).await?;
    let none = || Problem::new(404, "no-shipment", format!("there is no shipment for order {order_id:?}, or not yet"));
    shipment.map(Json).ok_or_else(none)
}

async fn state(State(Shipping { kit, store, inbox }): State<Shipping>) -> Result<Json<Value>, Problem> {
    let mut view = kit.view();
    store
        .read(move |c| {
            inbox.view(c, &mut view)?;
            view["shipments"] = c.query_row("SELECT count(*) FROM shipment", [], |row| row.get::<_, i64>(0))?.into();
            Ok(Json(view))
        })
        .await
}

/// Enters `shipment`; an order whose goods were sent gets no second ones.
fn send(connection: &Connection, shipment: &Shipment) -> rusqlite::Result<Effect> {
    let entered = connection
        .prepare_cached(
            "INSERT INTO shipment (order_id, shipment_id, invoice_id, sku, quantity, trace_id, shipped_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT (order_id) DO NOTHING",
        )?
        .execute((
            &shipment.order_id,
            &shipment.shipment_id,
            &shipment.invoice_id,
            &shipment.sku,
            shipment.quantity,
            &shipment.trace_id,
            &shipment.shipped_at,
        ))?;
    Ok(if entered == 1 { Effect::Applied } else { Effect::Duplicate })
}

fn find(connection: &Connection, order_id: &str) -> rusqlite::Result<Option<Shipment>> {
    connection
        .prepare_cached(
            "SELECT shipment_id, order_id, invoice_id, sku, quantity, trace_id, shipped_at FROM shipment WHERE order_id = ?1",
        )?
        .query_row([order_id], |row| {
            Ok(Shipment {
                shipment_id: row.get(0)?,
                order_id: row.get(1)?,
                invoice_id: row.get(2)?,
                sku: row.get(3)?,
                quantity: row.get(4)?,
                trace_id: row.get(5)?,
                shipped_at: row.get(6)?,
            })
        })
        .optional()
}

impl FromRef<Shipping> for Inbox {
    fn from_ref(shipping: &Shipping) -> Self {
        shipping.inbox.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goods_are_sent_once_for_an_order() {
        let connection = Connection::open_in_memory().expect("a database");
        connection.execute_batch(SCHEMA).expect("a schema");
        let shipment = |id: &str| Shipment {
            shipment_id: id.into(),
            order_id: "a".into(),
            invoice_id: "i".into(),
            sku: "book".into(),
            quantity: 2,
            trace_id: "t".into(),
            shipped_at: "2026-01-01T00:00:00Z".into(),
        };
        assert_eq!(send(&connection, &shipment("first")), Ok(Effect::Applied));
        assert_eq!(send(&connection, &shipment("second")), Ok(Effect::Duplicate));
        assert_eq!(find(&connection, "a"), Ok(Some(shipment("first"))));
        assert_eq!(find(&connection, "b"), Ok(None));
    }

    #[tokio::test]
    async fn a_shipment_is_there_once_its_invoice_has_come() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::at(&folder.path().join("shipping.db"), &format!("{SCHEMA}{}", inbox::SCHEMA));
        let kit = Kit::for_test("shipping", "shipping-1");
        let shipping = Shipping { inbox: Inbox::new(&kit), kit, store: store.expect("a store") };
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let router = public(shipping.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        let client = crate::kit::client().expect("a client");
        let deliver = async |body: Value| {
            let request = client.post(format!("{url}/events/invoice-issued")).header("meshctl-message-id", "m1");
            request.body(body.to_string()).send().await.expect("an answer").status().as_u16()
        };
        let shipment = || client.get(format!("{url}/shipments/a")).send();

        assert_eq!(shipment().await.expect("an answer").status(), 404);
        assert_eq!(deliver(json!({"orderId": "a", "sku": "book", "quantity": 2})).await, 422);
        let issued = json!({"orderId": "a", "invoiceId": "i", "sku": "book", "quantity": 2, "totalCents": 3980});
        assert_eq!((deliver(issued.clone()).await, deliver(issued).await), (200, 200));
        let shown: Value = shipment().await.expect("an answer").json().await.expect("JSON");
        assert_eq!((&shown["invoiceId"], &shown["quantity"]), (&json!("i"), &json!(2)));
        let Json(state) = state(State(shipping)).await.expect("a state");
        let counts = ["received", "applied", "duplicates", "rejected", "shipments"].map(|name| state[name].as_i64());
        assert_eq!(counts, [2, 1, 1, 1, 1].map(Some));
    }
}
