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

/// What somebody sends: not much, until it is let in.
fn limited(body: Body, is_in: Arc<AtomicBool>) -> impl HttpBody<Data = Bytes, Error = Status> {
    let mut left = MAX_HELLO_BYTES;
    let frames = BodyStream::new(body).map(move |frame| {
        let frame = frame?;
        let num_bytes = frame.data_ref().map_or(0, Bytes::len);
        if !is_in.load(Ordering::Acquire) {
            left = left.checked_sub(num_bytes).ok_or_else(|| {
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
