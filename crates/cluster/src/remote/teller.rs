//! Sends an instance its orders.

use std::sync::Arc;

use stallfree_core::Clock;
use tokio::sync::{mpsc, watch};
use tonic::Status;

use super::BEAT;
use super::convert;
use super::message::{Order, ToInstance};

/// Orders of one message.
const MAX_BATCH: usize = 64;

/// Sends an instance its orders.
pub(super) struct Teller {
    pub(super) clock: Arc<dyn Clock>,
    pub(super) out: mpsc::Sender<Result<ToInstance, Status>>,
}

impl Teller {
    /// Sends orders as they come, and something each second; ends with the deployment.
    pub(super) async fn tell(
        self,
        mut orders: mpsc::Receiver<Order>,
        mut closing: watch::Receiver<bool>,
    ) {
        for number in 1.. {
            let mut batch = Vec::new();
            tokio::select! {
                _ = closing.changed() => return,
                count = orders.recv_many(&mut batch, MAX_BATCH) => {
                    if count == 0 {
                        return;
                    }
                }
                () = tokio::time::sleep(BEAT) => {}
            }
            let now = convert::time_out(self.clock.now());
            if self.out.send(Ok(ToInstance { number, now, orders: batch })).await.is_err() {
                return;
            }
        }
    }
}
