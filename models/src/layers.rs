//! The parts that decoders are made of.

pub(crate) mod attention;
pub(crate) mod decoder_layer;
pub(crate) mod linear;
pub(crate) mod mlp;
pub(crate) mod norm;
pub(crate) mod rope;

pub(crate) use attention::{Attention, AttentionWeights};
pub(crate) use decoder_layer::DecoderLayer;
pub(crate) use linear::{Linear, Outputs};
pub(crate) use mlp::Mlp;
pub(crate) use norm::Norm;
