//! The one method of the gRPC service `stallfree.Instances`, as both sides need it.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::{Grpc, StreamingService};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use super::gate::Gate;
use super::message::{FromInstance, ToInstance};

/// The method, which takes and returns streams.
pub(crate) const JOIN: &str = "/stallfree.Instances/Join";

/// The most bytes of a message: the prompts of a few ten sequences, with their logprobs.
pub(crate) const MAX_BYTES: usize = 1 << 30;

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
            Ok(grpc.streaming(Joining(gate), request).await)
        })
    }
}

struct Joining(Arc<Gate>);

impl StreamingService<FromInstance> for Joining {
    type Response = ToInstance;
    type ResponseStream = ReceiverStream<Result<ToInstance, Status>>;
    type Future = BoxFuture<Response<Self::ResponseStream>, Status>;

    fn call(&mut self, request: Request<Streaming<FromInstance>>) -> Self::Future {
        let gate = Arc::clone(&self.0);
        Box::pin(async move {
            let from = request.remote_addr();
            let orders = gate.welcome(request.into_inner(), from).await?;
            Ok(Response::new(ReceiverStream::new(orders)))
        })
    }
}
