//! How KV gets from one simulated instance to another.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use stallfree_core::{InstanceId, Time, lock};

use crate::{Gpu, Link};

/// What it takes to ask for blocks and to be told that they are there, beside what the link takes. With a link's full rate, 512 MiB
/// between two GPUs on NVLink take 2.2 ms then, and 1.6 if half of them came earlier; measured were 2.2 and 1.5
/// (docs/disaggregation.md).
const REQUEST: Duration = Duration::from_millis(1);

/// The links between simulated instances. Clones are the same network.
///
/// Every GPU has one way in and one way out, as fast as the link of the smallest group that holds both instances. What an instance
/// fetches comes one after the other, and so does what is fetched from it: two that fetch from a third share its links.
#[derive(Clone, Debug, Default)]
pub struct SimNetwork(Arc<Mutex<HashMap<InstanceId, Port>>>);

#[derive(Clone, Debug)]
struct Port {
    gpus: Range<usize>,
    sends_until: Time,
    receives_until: Time,
}

impl SimNetwork {
    /// Adds an instance on `gpus`, counted over the whole deployment.
    pub fn join(&self, instance: InstanceId, gpus: Range<usize>) {
        let port = Port { gpus, sends_until: Time::ZERO, receives_until: Time::ZERO };
        lock(&self.0).insert(instance, port);
    }

    /// Moves `bytes` to each GPU of `to`; returns when they are there.
    ///
    /// # Errors
    /// One of the two is not on the network.
    pub(crate) fn fetch(
        &self,
        gpu: &Gpu,
        (from, to): (InstanceId, InstanceId),
        bytes: f64,
        now: Time,
    ) -> Result<Time, String> {
        let mut ports = lock(&self.0);
        let missing = |instance| format!("instance {instance} is not on the network");
        let sender = ports.get(&from).ok_or_else(|| missing(from))?.clone();
        let receiver = ports.get(&to).ok_or_else(|| missing(to))?.clone();
        // Where there are fewer senders than receivers, each has to send that much more.
        let crowd = receiver.gpus.len() as f64 / sender.gpus.len().max(1) as f64;
        let link = gpu.link_between(&sender.gpus, &receiver.gpus);
        let seconds = link.latency_s + bytes * crowd.max(1.0) / link.bytes_per_s;
        let begins = now.max(sender.sends_until).max(receiver.receives_until);
        let there = begins + REQUEST + Duration::from_secs_f64(seconds.clamp(0.0, 1e6));
        if let Some(port) = ports.get_mut(&from) {
            port.sends_until = there;
        }
        if let Some(port) = ports.get_mut(&to) {
            port.receives_until = there;
        }
        Ok(there)
    }
}

impl Gpu {
    /// Returns how two ranges of GPUs are connected: by the link of the smallest group that holds all of both. Groups begin at
    /// multiples of their size. Of what is not connected at all, it is a copy in one memory.
    fn link_between(&self, one: &Range<usize>, other: &Range<usize>) -> Link {
        let first = one.start.min(other.start);
        let last = one.end.max(other.end).saturating_sub(1);
        let holds = |link: &&Link| first / link.gpus.max(1) == last / link.gpus.max(1);
        let link = self.links.iter().find(holds).or(self.links.last()).copied();
        link.unwrap_or(Link { gpus: 1, bytes_per_s: self.bytes_per_s, latency_s: 0.0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::Shipped;

    #[test]
    fn what_is_fetched_takes_its_bytes_over_the_link() {
        let gpu = Shipped::find("a100-80g-pcie").unwrap().gpu();
        let network = SimNetwork::default();
        for (instance, gpus) in [(0, 0..1), (1, 1..2), (2, 2..4), (3, 4..5)] {
            network.join(InstanceId(instance), gpus);
        }
        let check = |from, to, at: u64, expected_ms: f64| {
            let now = Time::from_start(Duration::from_secs(at));
            let pair = (InstanceId(from), InstanceId(to));
            let there = network.fetch(&gpu, pair, 300e6, now).unwrap();
            let ms = (there - now).as_secs_f64() * 1e3;
            assert!((ms - expected_ms).abs() < 0.1, "{from} to {to}: {ms}");
        };
        // 300 MB over NVLink; then behind the first; over PCIe, where one sends what two receive; over Ethernet.
        check(0, 1, 1, 2.01);
        check(0, 1, 1, 4.02);
        check(0, 2, 2, 1.02 + 2.0 * 300.0 / 31.5);
        check(2, 0, 3, 1.02 + 300.0 / 31.5);
        check(0, 3, 4, 1.05 + 300.0 / 12.5);
        // Two that fetch from one share its way out.
        check(1, 0, 5, 2.01);
        check(1, 2, 5, 2.01 + 1.02 + 2.0 * 300.0 / 31.5);
        let unknown = network.fetch(&gpu, (InstanceId(9), InstanceId(0)), 1.0, Time::ZERO);
        assert!(unknown.unwrap_err().contains('9'));
    }
}
