//! `billing`: makes out one invoice for each order that was placed. All instances share one book of invoices.
//!
//! | request | answer |
//! |---|---|
//! | `POST /events/order-placed` `{orderId, sku, quantity}` as a CloudEvent | 200 `{duplicate}` · 400, 422 cannot be understood |
//! | `GET /invoices/ORDERID` | 200 the invoice · 404 not yet, or no such order |
//!
//! That the message was received, the invoice, and the event `invoice.issued` `{invoiceId, orderId, sku, quantity, totalCents,
//! issuedAt}` are one transaction; the outbox publishes the event to `EVENTS`, where that is set.

use std::io;

use axum::extract::{FromRef, Path, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use rusqlite::{Connection, OptionalExtension};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::kit::inbox::{self, Delivery, Effect, Inbox};
use crate::kit::outbox::{self, Event, Outbox};
use crate::kit::{Context, Kit, Problem, Store};

/// Everything in the shop costs the same.
const PRICE_CENTS: u64 = 1990;

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS invoice (
        order_id    TEXT PRIMARY KEY,
        invoice_id  TEXT NOT NULL,
        sku         TEXT NOT NULL,
        quantity    INTEGER NOT NULL,
        total_cents INTEGER NOT NULL,
        trace_id    TEXT NOT NULL,
        issued_at   TEXT NOT NULL
    ) STRICT;
";

#[derive(Clone)]
struct Billing {
    kit: Kit,
    store: Store,
    inbox: Inbox,
    outbox: Outbox,
}

/// What billing reads of `order.placed`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Placed {
    order_id: String,
    sku: String,
    quantity: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Invoice {
    invoice_id: String,
    order_id: String,
    sku: String,
    quantity: u32,
    total_cents: u64,
    trace_id: String,
    issued_at: String,
}

pub(crate) async fn serve(kit: Kit) -> io::Result<()> {
    let schema = format!("{SCHEMA}{}{}", inbox::SCHEMA, outbox::SCHEMA);
    let store = Store::open(kit.service(), &schema).map_err(io::Error::other)?;
    let (outbox, publishing) = Outbox::start(&kit, &store).map_err(io::Error::other)?;
    let billing = Billing { inbox: Inbox::new(&kit), kit: kit.clone(), store, outbox };
    let admin = Router::new().route("/state", get(state)).with_state(billing.clone());
    let served = kit.serve(public(billing), admin).await;
    publishing.end().await;
    served
}

fn public(billing: Billing) -> Router {
    Router::new()
        .route("/events/order-placed", post(receive))
        .route("/invoices/{order_id}", get(show))
        .with_state(billing)
}

async fn receive(
    State(billing): State<Billing>,
    context: Context,
    Delivery { id, payload: placed }: Delivery<Placed>,
) -> Result<Json<Value>, Problem> {
    let invoice = Invoice {
        invoice_id: uuid::Uuid::now_v7().to_string(),
        total_cents: u64::from(placed.quantity) * PRICE_CENTS,
        order_id: placed.order_id,
        sku: placed.sku,
        quantity: placed.quantity,
        trace_id: context.trace_id().to_owned(),
        issued_at: jiff::Timestamp::now().to_string(),
    };
    let told = json!({"orderId": invoice.order_id, "messageId": id.name(), "traceId": invoice.trace_id});
    let outbox = billing.outbox.clone();
    let effect = billing.store.write(move |c| Inbox::once(c, &id, |c| issue(c, &invoice, &outbox, &context))).await?;
    if effect == Effect::Applied {
        billing.kit.debug(format_args!("invoice issued"), told);
    }
    Ok(effect.answer())
}

async fn show(State(billing): State<Billing>, Path(order_id): Path<String>) -> Result<Json<Invoice>, Problem> {
    let wanted = order_id.clone();
    let invoice = billing.store.read(move |c| find(c, &wanted)).await?;
    let none = || Problem::new(404, "no-invoice", format!("there is no invoice for order {order_id:?}, or not yet"));
    invoice.map(Json).ok_or_else(none)
}

async fn state(State(Billing { kit, store, inbox, outbox }): State<Billing>) -> Result<Json<Value>, Problem> {
    let mut view = kit.view();
    store
        .read(move |c| {
            inbox.view(c, &mut view)?;
            view["invoices"] = c.query_row("SELECT count(*) FROM invoice", [], |row| row.get::<_, i64>(0))?.into();
            view["outbox"] = outbox.view(c)?;
            Ok(Json(view))
        })
        .await
}

/// Enters `invoice` and tells of it; an order that has one keeps it.
fn issue(connection: &Connection, invoice: &Invoice, outbox: &Outbox, context: &Context) -> rusqlite::Result<Effect> {
    let entered = connection
        .prepare_cached(
            "INSERT INTO invoice (order_id, invoice_id, sku, quantity, total_cents, trace_id, issued_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT (order_id) DO NOTHING",
        )?
        .execute((
            &invoice.order_id,
            &invoice.invoice_id,
            &invoice.sku,
            invoice.quantity,
            invoice.total_cents,
            &invoice.trace_id,
            &invoice.issued_at,
        ))?;
    if entered == 0 {
        return Ok(Effect::Duplicate);
    }
    outbox.put(connection, context, &invoice.issued())?;
    Ok(Effect::Applied)
}

fn find(connection: &Connection, order_id: &str) -> rusqlite::Result<Option<Invoice>> {
    connection
        .prepare_cached(
            "SELECT invoice_id, order_id, sku, quantity, total_cents, trace_id, issued_at FROM invoice WHERE order_id = ?1",
        )?
        .query_row([order_id], |row| {
            Ok(Invoice {
                invoice_id: row.get(0)?,
                order_id: row.get(1)?,
                sku: row.get(2)?,
                quantity: row.get(3)?,
                total_cents: row.get(4)?,
                trace_id: row.get(5)?,
                issued_at: row.get(6)?,
            })
        })
        .optional()
}

impl Invoice {
    fn issued(&self) -> Event {
        let mut payload = json!(self);
        // The trace of an event is in its headers.
        payload.as_object_mut().map(|fields| fields.remove("traceId"));
        Event { kind: "invoice.issued", key: self.order_id.clone(), payload }
    }
}

impl FromRef<Billing> for Inbox {
    fn from_ref(billing: &Billing) -> Self {
        billing.inbox.clone()
    }
}

#[cfg(test)]
#[path = "billing_tests.rs"]
mod tests;
