//! How ranks on GPUs are joined: those of one process by each other's memory, or each on its own through NCCL.

use stallfree_comm::nccl::Communicators;

use super::CudaBackend;
use crate::cuda::CudaError;
use crate::cuda::exchange::Exchange;
use crate::cuda::peers::{PeerOps, StageWires, Wires};

impl CudaBackend {
    /// Joins the ranks that share each layer, in their order; `hidden_size` is the length of the rows that they sum. Until then a
    /// rank takes its share for the sum, so that a step which only warms up needs nobody.
    ///
    /// # Errors
    /// Two GPUs cannot reach each other's memory, or it is short.
    pub fn connect(ranks: &mut [&mut Self], hidden_size: usize) -> Result<(), CudaError> {
        let num_ranks = ranks.len();
        let mut ends = Vec::with_capacity(num_ranks);
        for rank in 0..num_ranks {
            for peer in (0..num_ranks).filter(|&peer| peer != rank) {
                ranks[rank].tools.device.reach(&ranks[peer].tools.device)?;
            }
            let Self { tools, stream, activations, exchange, .. } = &mut *ranks[rank];
            let (device, start) = (&tools.device, activations.start());
            let (wires, end) = Wires::new(device, stream, (rank, num_ranks), start)?;
            let ops = PeerOps::load(tools, hidden_size, num_ranks)?;
            *exchange = Some(Exchange::over_memory(wires, ops));
            ends.push(end);
        }
        for exchange in ranks.iter_mut().filter_map(|rank| rank.exchange.as_mut()) {
            exchange.wires.connect(&ends);
        }
        Ok(())
    }

    /// Joins the ranks that have the same share of every stage, in the order of stages, once each is joined to those of its stage.
    ///
    /// # Errors
    /// Two GPUs cannot reach each other's memory, or it is short.
    pub fn connect_stages(ranks: &mut [&mut Self], hidden_size: usize) -> Result<(), CudaError> {
        for place in 0..ranks.len() {
            for peer in [place.wrapping_sub(1), place + 1] {
                if let Some(peer) = ranks.get(peer) {
                    ranks[place].tools.device.reach(&peer.tools.device)?;
                }
            }
            let Self { tools, stream, config, exchange, .. } = &mut *ranks[place];
            let bytes = config.max_tokens * hidden_size * config.dtype.bytes();
            if let Some(exchange) = exchange {
                exchange.stages = Some(StageWires::new(&tools.device, stream, bytes)?);
            }
        }
        for place in 1..ranks.len() {
            let (before, after) = ranks.split_at_mut(place);
            if let (Some(before), Some(after)) = (before[place - 1].stages(), after[0].stages()) {
                StageWires::connect(before, after);
            }
        }
        Ok(())
    }

    /// Joins this rank to those of its stage and to the other stages through NCCL, as an alternative to [`connect`](Self::connect)
    /// and [`connect_stages`](Self::connect_stages).
    ///
    /// # Errors
    /// Memory is short, or no kernel takes rows of `hidden_size`.
    pub fn connect_through_nccl(
        &mut self,
        communicators: Communicators,
        hidden_size: usize,
        vocab_size: usize,
    ) -> Result<(), CudaError> {
        self.tools.device.bind()?;
        let sizes = (hidden_size, vocab_size);
        let exchange = Exchange::through_nccl(&self.tools, &self.stream, communicators, sizes)?;
        self.exchange = Some(exchange);
        Ok(())
    }

    fn stages(&mut self) -> Option<&mut StageWires> {
        self.exchange.as_mut()?.stages.as_mut()
    }
}
