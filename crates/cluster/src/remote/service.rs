//! The one method of the gRPC service `stallfree.Instances`, as both sides need it.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use http_body_util::{BodyStream, StreamBody};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::codegen::{Body as HttpBody, BoxFuture, Bytes, Service, http};
use tonic::server::{Grpc, StreamingService};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use super::gate::Gate;
use super::message::{FromInstance, ToInstance};

/// The method, which takes and returns streams.
pub(crate) const JOIN: &str = "/stallfree.Instances/Join";

/// The most bytes of a message: the prompts of a few ten sequences, with their logprobs.
pub(crate) const MAX_BYTES: usize = 1 << 30;

/// The most bytes that somebody may send before it is let in.
pub(crate) const MAX_HELLO_BYTES: usize = 1 << 20;

/// How many bytes may be on their way before they are taken.
pub(crate) const WINDOW: u32 = 1 << 22;

/// The service.
#[derive(Clone, Debug)]
pub(crate) struct Instances(pub(crate) Arc<Gate>);

impl Service<http::Request<Body>> for Instances {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let gate = Arc::clone(&self.0);
        Box::pin(async move {
            if request.uri().path() != JOIN {
                let text = format!("there is only {JOIN}");
                return Ok(Status::unimplemented(text).into_http());
            }
            let codec = ProstCodec::<ToInstance, FromInstance>::default();
            let mut grpc = Grpc::new(codec)
                .max_decoding_message_size(MAX_BYTES)
                .max_encoding_message_size(MAX_BYTES);
            let is_in = Arc::new(AtomicBool::new(false));
            let joining = Joining { gate, is_in: Arc::clone(&is_in) };
            let request = request.map(|body| limited(body, is_in));
            Ok(grpc.streaming(joining, request).await)
        })
    }
}

/// How many bytes are before a message: whether it is compressed, and, big-endian, how long it is.
const PREFIX: usize = 5;

/// What somebody sends: not much, until it is let in. Nor may its first message say that it is longer: room is made for what it says.
fn limited(body: Body, is_in: Arc<AtomicBool>) -> impl HttpBody<Data = Bytes, Error = Status> {
    let mut left = MAX_HELLO_BYTES;
    let mut prefix = Vec::with_capacity(PREFIX);
    let frames = BodyStream::new(body).map(move |frame| {
        let frame = frame?;
        let bytes = frame.data_ref().map_or(&[][..], |bytes| bytes);
        if !is_in.load(Ordering::Acquire) {
            prefix.extend(bytes.iter().take(PREFIX - prefix.len()));
            let announced = match prefix[..] {
                [_, a, b, c, d] => u32::from_be_bytes([a, b, c, d]) as usize,
                _ => 0,
            };
            left = left
                .checked_sub(bytes.len())
                .filter(|_| announced <= MAX_HELLO_BYTES)
                .ok_or_else(|| {
                    Status::resource_exhausted(format!(
                        "it says hello in more than {MAX_HELLO_BYTES} bytes"
                    ))
                })?;
        }
        Ok(frame)
    });
    StreamBody::new(frames)
}

struct Joining {
    gate: Arc<Gate>,
    /// Whether it has been let in.
    is_in: Arc<AtomicBool>,
}

impl StreamingService<FromInstance> for Joining {
    type Response = ToInstance;
    type ResponseStream = ReceiverStream<Result<ToInstance, Status>>;
    type Future = BoxFuture<Response<Self::ResponseStream>, Status>;

    fn call(&mut self, request: Request<Streaming<FromInstance>>) -> Self::Future {
        let (gate, is_in) = (Arc::clone(&self.gate), Arc::clone(&self.is_in));
        Box::pin(async move {
            let from = request.remote_addr();
            let orders = gate.welcome(request.into_inner(), from).await?;
            // It says no more before it has this answer.
            is_in.store(true, Ordering::Release);
            Ok(Response::new(ReceiverStream::new(orders)))
        })
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyStream, Full, StreamBody};
    use tokio_stream::StreamExt as _;
    use tonic::body::Body;
    use tonic::codegen::Bytes;

    use super::{MAX_HELLO_BYTES, limited};

    /// Sends the beginning of a message that says to be `len` bytes long, in pieces; returns how many of them are passed on.
    async fn num_passed_on(len: usize) -> usize {
        let len = u32::try_from(len).expect("a short one").to_be_bytes();
        let pieces = [&[0, len[0]][..], &len[1..], b"it begins"].map(Bytes::copy_from_slice);
        let [first, second, third] = pieces.map(|piece| BodyStream::new(Full::new(piece)));
        let body = Body::new(StreamBody::new(first.chain(second).chain(third)));
        BodyStream::new(limited(body, Default::default()))
            .take_while(Result::is_ok)
            .fold(0, |count, _| count + 1)
            .await
    }

    #[tokio::test]
    async fn no_room_is_made_for_what_a_stranger_only_says() {
        for (len, expected) in [(9, 3), (MAX_HELLO_BYTES, 3), (MAX_HELLO_BYTES + 1, 1)] {
            assert_eq!(num_passed_on(len).await, expected, "{len}");
        }
    }
}
