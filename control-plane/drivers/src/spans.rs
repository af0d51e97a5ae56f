//! What data-plane processes recorded, as they say it: `GET /spans` is an endless sequence of frames, each a length (four
//! bytes, big-endian) and one batch (protobuf); `GET /spans?trace=ID,ID` is one frame with what is still remembered of these
//! traces, recorded or not. Gateways say it on their admin socket (see [`crate::gateway::Gateway::spans`]), couriers on
//! their port, which [`follow`] and [`recall`] read.
//!
//! In a batch `service.name` says who did it, and `meshctl.dropped` how many spans that process could not keep until
//! somebody read them, since it started. A span whose body broke after its response had begun comes a second time, with what
//! became of it: of two with one id the later holds.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use prost::Message as _;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

/// A batch of spans, as OTLP has it.
pub use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest as Spans;

/// The resource attribute: spans that were lost before anybody read them, since the process started.
pub const DROPPED: &str = "meshctl.dropped";
/// How many traces can be asked for at once.
pub const RECALL_AT_ONCE: usize = 256;
/// Batches that the receiver has not taken. Beyond it nothing more is read, and the process counts what it then loses.
const WAITING: usize = 16;
const LARGEST_FRAME: usize = 64 << 20;
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Why a courier's spans cannot be read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SpansError {
    /// It is not there, or went away.
    #[error("the courier at {address} does not tell its spans: {why}")]
    Unreachable { address: SocketAddr, why: String },
    /// It answered something else.
    #[error("the courier at {address} refused to tell its spans: {why}")]
    Refused { address: SocketAddr, why: String },
}

/// What the courier at `address` records from now on, until it ends or the receiver is dropped. A process has one reader:
/// another one takes over, and the first one's stream ends.
///
/// # Errors
/// When it does not answer, or with something else.
pub async fn follow(address: SocketAddr) -> Result<mpsc::Receiver<Spans>, SpansError> {
    let response = ask(address, "/spans").await?;
    let (batches, receiver) = mpsc::channel(WAITING);
    tokio::spawn(forward(response.into_body(), batches, address.to_string()));
    Ok(receiver)
}

/// What the courier at `address` still remembers of these traces (32 hexadecimal digits each, at most
/// [`RECALL_AT_ONCE`]), recorded or not.
///
/// # Errors
/// When it does not answer, or with something else.
pub async fn recall(address: SocketAddr, trace_ids: &[String]) -> Result<Spans, SpansError> {
    let response = ask(address, &recall_path(trace_ids)).await?;
    let read = tokio::time::timeout(ANSWER_WITHIN, one(response.into_body())).await;
    read.unwrap_or_else(|_| Err(format!("no whole answer within {ANSWER_WITHIN:?}")))
        .map_err(|why| SpansError::Unreachable { address, why })
}

/// One batch as it is sent.
pub fn frame(batch: &Spans) -> Bytes {
    let length = batch.encoded_len();
    let mut frame = BytesMut::with_capacity(4 + length);
    frame.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    frame.put(batch.encode_to_vec().as_slice());
    frame.freeze()
}

pub(crate) fn recall_path(trace_ids: &[String]) -> String {
    format!("/spans?trace={}", trace_ids.join(","))
}

/// Reads frames until either side ends.
pub(crate) async fn forward(mut body: Incoming, batches: mpsc::Sender<Spans>, of: String) {
    let mut unread = BytesMut::new();
    loop {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            () = batches.closed() => return,
        };
        let Some(Ok(frame)) = frame else { return };
        unread.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
        loop {
            match take(&mut unread) {
                Ok(Some(batch)) => {
                    if batches.send(batch).await.is_err() {
                        return;
                    }
                }
                Ok(None) => break,
                Err(why) => return tracing::warn!(%of, why, "its spans cannot be read; reading them anew"),
            }
        }
    }
}

/// The one frame of a whole body.
///
/// # Errors
/// In words, when it breaks off or is none.
pub(crate) async fn one(body: Incoming) -> Result<Spans, String> {
    let body = Limited::new(body, LARGEST_FRAME).collect().await.map_err(|why| why.to_string())?;
    take(&mut BytesMut::from(body.to_bytes()))?.ok_or_else(|| "the answer broke off".to_owned())
}

/// The first batch, once it is there as a whole.
///
/// # Errors
/// In words, when what comes is none.
fn take(unread: &mut BytesMut) -> Result<Option<Spans>, String> {
    let Some(length) = unread.first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_be_bytes(*length) as usize;
    if length > LARGEST_FRAME {
        return Err(format!("a batch of {length} bytes"));
    }
    if unread.len() < 4 + length {
        return Ok(None);
    }
    unread.advance(4);
    Spans::decode(unread.split_to(length)).map(Some).map_err(|why| format!("a batch that is none: {why}"))
}

async fn ask(address: SocketAddr, path: &str) -> Result<Response<Incoming>, SpansError> {
    let unreachable = |why: String| SpansError::Unreachable { address, why };
    let exchange = async {
        let stream = TcpStream::connect(address).await.map_err(|e| unreachable(e.to_string()))?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|e| unreachable(e.to_string()))?;
        // It ends with the response's body; an error of it is an error of the request.
        tokio::spawn(connection);
        let request = Request::get(path).header("host", address.to_string()).body(Empty::<Bytes>::new());
        let request = request.map_err(|e| SpansError::Refused { address, why: e.to_string() })?;
        let response = sender.send_request(request).await.map_err(|e| unreachable(e.to_string()))?;
        if !response.status().is_success() {
            return Err(SpansError::Refused { address, why: format!("it answered {}", response.status()) });
        }
        Ok(response)
    };
    let answered = tokio::time::timeout(ANSWER_WITHIN, exchange).await;
    answered.unwrap_or_else(|_| Err(unreachable(format!("no answer within {ANSWER_WITHIN:?}"))))
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::trace::v1::ResourceSpans;

    use super::*;

    #[test]
    fn batches_come_out_of_whatever_pieces_they_came_in() {
        let batch = |url: &str| Spans {
            resource_spans: vec![ResourceSpans { schema_url: url.to_owned(), ..ResourceSpans::default() }],
        };
        let sent = [batch("a"), Spans::default(), batch(&"b".repeat(300))];
        let bytes: Vec<u8> = sent.iter().flat_map(|batch| frame(batch).to_vec()).collect();
        for piece in [1, 3, 7, bytes.len()] {
            let (mut unread, mut got) = (BytesMut::new(), Vec::new());
            for part in bytes.chunks(piece) {
                unread.extend_from_slice(part);
                while let Some(batch) = take(&mut unread).expect("frames") {
                    got.push(batch);
                }
            }
            assert_eq!((got.as_slice(), unread.len()), (sent.as_slice(), 0), "{piece}");
        }
    }

    #[test]
    fn what_is_no_frame_is_said_to_be_none() {
        assert!(take(&mut BytesMut::from(&b"HTTP/1.1 200 OK"[..])).is_err_and(|why| why.contains("bytes")));
        assert!(take(&mut BytesMut::from(&[0, 0, 0, 2, 0xff, 0xff][..])).is_err_and(|why| why.contains("none")));
    }
}
