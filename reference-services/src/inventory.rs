//! `inventory`: how much of each article there is. All instances share one stock.
//!
//! | request | answer |
//! |---|---|
//! | `GET /inventory/SKU` | 200 `{sku, available, instance}` · 404 unknown |
//! | `POST /reservations {sku, quantity, orderId}` | 201 `{orderId, sku, quantity}` · 409 `out-of-stock` · 404 unknown; an order that asks again gets the same answer and takes nothing more |
//!
//! `STOCK` (`book=100,lamp=5`) or [`STOCK`] is what articles begin with that the data directory does not know yet.

use std::io;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use rusqlite::{Connection, OptionalExtension};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::kit::{Input, Kit, Problem, Store, env};

/// The stock to begin with: enough of everything for a load test, except where running out is the point.
const STOCK: [(&str, i64); 5] =
    [("book", 1_000_000_000), ("lamp", 1_000_000_000), ("chair", 1000), ("desk", 10), ("unicorn", 0)];

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS stock (sku TEXT PRIMARY KEY, available INTEGER NOT NULL CHECK (available >= 0)) STRICT;
    CREATE TABLE IF NOT EXISTS reservation (order_id TEXT PRIMARY KEY, sku TEXT NOT NULL, quantity INTEGER NOT NULL) STRICT;
";

#[derive(Clone)]
struct Inventory {
    kit: Kit,
    store: Store,
}

pub(crate) async fn serve(kit: Kit) -> io::Result<()> {
    let stock = initial_stock(env("STOCK").as_deref()).map_err(io::Error::other)?;
    let store = Store::open(kit.service(), SCHEMA).map_err(io::Error::other)?;
    let inventory = Inventory { kit: kit.clone(), store };
    inventory.store.write(move |c| seed(c, &stock)).await.map_err(|why| io::Error::other(why.to_string()))?;
    let public = Router::new()
        .route("/inventory/{sku}", get(show))
        .route("/reservations", post(reserve))
        .with_state(inventory.clone());
    let admin = Router::new().route("/state", get(state)).with_state(inventory);
    kit.serve(public, admin).await
}

async fn show(
    State(Inventory { kit, store }): State<Inventory>,
    Path(sku): Path<String>,
) -> Result<Json<Value>, Problem> {
    let wanted = sku.clone();
    let available = store.read(move |c| available(c, &wanted)).await?.ok_or_else(|| unknown(&sku))?;
    Ok(Json(json!({"sku": sku, "available": available, "instance": kit.instance()})))
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Reservation {
    sku: String,
    quantity: u32,
    order_id: String,
}

/// What became of a reservation.
#[derive(Debug, PartialEq)]
enum Outcome {
    Reserved,
    OutOfStock(i64),
    Unknown,
    /// The same order asked for something else before.
    Differs(Reservation),
}

async fn reserve(
    State(Inventory { store, .. }): State<Inventory>,
    Input(wanted): Input<Reservation>,
) -> Result<(StatusCode, Json<Reservation>), Problem> {
    if wanted.quantity == 0 {
        return Err(Problem::new(422, "invalid-quantity", "quantity is 0; it must be at least 1"));
    }
    let reservation = wanted.clone();
    let Reservation { sku, quantity, order_id } = &wanted;
    match store.write(move |c| take(c, &reservation)).await? {
        Outcome::Reserved => Ok((StatusCode::CREATED, Json(wanted))),
        Outcome::Unknown => Err(unknown(sku)),
        Outcome::OutOfStock(available) => {
            let detail = format!("{quantity} of {sku} are wanted and {available} are left");
            Err(Problem::new(409, "out-of-stock", detail).with("available", available))
        }
        Outcome::Differs(before) => {
            let detail = format!("order {order_id} has {} of {} reserved already", before.quantity, before.sku);
            Err(Problem::new(422, "reservation-differs", detail))
        }
    }
}

async fn state(State(Inventory { kit, store }): State<Inventory>) -> Result<Json<Value>, Problem> {
    let (stock, reservations) = store
        .read(|c| {
            let stock = c
                .prepare_cached("SELECT sku, available FROM stock ORDER BY sku")?
                .query_map([], |row| Ok((row.get::<_, String>(0)?, Value::from(row.get::<_, i64>(1)?))))?
                .collect::<rusqlite::Result<serde_json::Map<_, _>>>()?;
            let reservations: i64 = c.query_row("SELECT count(*) FROM reservation", [], |row| row.get(0))?;
            Ok((stock, reservations))
        })
        .await?;
    let mut view = kit.view();
    view["stock"] = stock.into();
    view["reservations"] = reservations.into();
    Ok(Json(view))
}

fn unknown(sku: &str) -> Problem {
    Problem::new(404, "unknown-sku", format!("there is no article {sku:?}"))
}

fn initial_stock(given: Option<&str>) -> Result<Vec<(String, i64)>, String> {
    let Some(given) = given else {
        return Ok(STOCK.iter().map(|(sku, quantity)| ((*sku).to_owned(), *quantity)).collect());
    };
    given
        .split(',')
        .map(|entry| {
            let (sku, quantity) = entry.split_once('=')?;
            Some((sku.trim().to_owned(), quantity.trim().parse().ok().filter(|quantity| *quantity >= 0)?))
        })
        .collect::<Option<_>>()
        .ok_or_else(|| format!("STOCK is {given:?}; it should read like book=100,lamp=5"))
}

fn seed(connection: &Connection, stock: &[(String, i64)]) -> rusqlite::Result<()> {
    let mut insert = connection.prepare_cached("INSERT OR IGNORE INTO stock (sku, available) VALUES (?1, ?2)")?;
    stock.iter().try_for_each(|entry| insert.execute((&entry.0, entry.1)).map(|_| ()))
}

fn available(connection: &Connection, sku: &str) -> rusqlite::Result<Option<i64>> {
    connection
        .prepare_cached("SELECT available FROM stock WHERE sku = ?1")?
        .query_row([sku], |row| row.get(0))
        .optional()
}

/// Takes the goods of an order from the stock, once however often it is asked.
fn take(connection: &Connection, wanted: &Reservation) -> rusqlite::Result<Outcome> {
    let before = connection
        .prepare_cached("SELECT sku, quantity FROM reservation WHERE order_id = ?1")?
        .query_row([&wanted.order_id], |row| {
            Ok(Reservation { sku: row.get(0)?, quantity: row.get(1)?, order_id: wanted.order_id.clone() })
        })
        .optional()?;
    if let Some(before) = before {
        return Ok(if before == *wanted { Outcome::Reserved } else { Outcome::Differs(before) });
    }
    let Some(available) = available(connection, &wanted.sku)? else { return Ok(Outcome::Unknown) };
    if available < i64::from(wanted.quantity) {
        return Ok(Outcome::OutOfStock(available));
    }
    connection
        .prepare_cached("UPDATE stock SET available = available - ?2 WHERE sku = ?1")?
        .execute((&wanted.sku, wanted.quantity))?;
    connection.prepare_cached("INSERT INTO reservation (order_id, sku, quantity) VALUES (?1, ?2, ?3)")?.execute((
        &wanted.order_id,
        &wanted.sku,
        wanted.quantity,
    ))?;
    Ok(Outcome::Reserved)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(order_id: &str, sku: &str, quantity: u32) -> Reservation {
        Reservation { sku: sku.into(), quantity, order_id: order_id.into() }
    }

    #[test]
    fn an_order_takes_its_goods_once_and_never_more_than_there_are() {
        let connection = Connection::open_in_memory().expect("a database");
        connection.execute_batch(SCHEMA).expect("a schema");
        seed(&connection, &initial_stock(Some("lamp=3")).expect("a stock")).expect("seeded");

        let first = order("a", "lamp", 2);
        assert_eq!(take(&connection, &first), Ok(Outcome::Reserved));
        assert_eq!(take(&connection, &first), Ok(Outcome::Reserved));
        assert_eq!(available(&connection, "lamp"), Ok(Some(1)));
        assert_eq!(take(&connection, &order("b", "lamp", 2)), Ok(Outcome::OutOfStock(1)));
        assert_eq!(take(&connection, &order("a", "lamp", 1)), Ok(Outcome::Differs(first)));
        assert_eq!(take(&connection, &order("c", "rope", 1)), Ok(Outcome::Unknown));
        assert_eq!(available(&connection, "lamp"), Ok(Some(1)));
    }

    #[test]
    fn a_stock_that_cannot_be_read_is_refused_whole() {
        assert_eq!(initial_stock(Some("a=1, b=2")), Ok(vec![("a".into(), 1), ("b".into(), 2)]));
        for bad in ["a", "a=-1", "a=1,b", "a=x"] {
            assert!(initial_stock(Some(bad)).is_err(), "{bad}");
        }
    }
}
