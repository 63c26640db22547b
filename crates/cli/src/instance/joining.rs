//! Instances in processes of their own: what they must have in common, and how they reach each other's KV.

use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs as _, UdpSocket,
};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use stallfree_cluster::{Agreement, GateConfig, JoinConfig, Neighbours};
use stallfree_core::{InstanceId, LeaseBook};
use stallfree_models::Checkpoint;
use stallfree_sim::SimNetwork;
use stallfree_transfer::{KvAddress, KvNetwork, KvServer, Nixl, NixlAgent, Ports};

use super::members::Seat;
use super::worker::NODE_PATIENCE;
use super::{Built, StartReport, build, open, start_device};
use crate::args::{InstanceArgs, KvTransport};
use crate::config::{DeviceConfig, GateArgs, InstanceConfig, SIMULATED_ALONE};
use crate::environment::Environment;
use crate::serve::report;
use crate::{model_source, signals};

/// Memory that is registered with NIXL, for KV on its way; more goes over TCP. It costs nothing until it is used.
const NIXL_BYTES: usize = 256 << 20;

/// How long an instance may take to load its model before its server gives it up.
const LOADING_PATIENCE: Duration = Duration::from_secs(3600);

/// The KV of all processes of a deployment, as this one reads and shows it.
#[derive(Debug)]
pub(super) struct Reach {
    ports: Ports,
    network: KvNetwork,
    server: KvServer,
    /// Where a process is that listens on all interfaces.
    host: Option<IpAddr>,
}

impl Reach {
    /// Shows the blocks behind `ports` to others, at the address `host` of this machine.
    fn open(
        host: IpAddr,
        ports: &Ports,
        agent: Option<Arc<NixlAgent>>,
        server_host: Option<IpAddr>,
    ) -> Result<Self> {
        let server = KvServer::start(host, ports.clone(), agent.clone())
            .with_context(|| format!("other processes can't be let read KV at {host}"))?;
        let network = KvNetwork::new(agent);
        Ok(Self { ports: ports.clone(), network, server, host: server_host })
    }
}

impl Neighbours for Reach {
    fn came(&self, instance: InstanceId, kv_address: &[u8]) {
        match KvAddress::from_bytes(kv_address, self.host) {
            Ok(address) => self.ports.open(instance, self.network.port(instance, address)),
            // What is not fetched is computed.
            Err(error) => tracing::warn!("KV of instance {instance} can't be read: {error}"),
        }
    }

    fn left(&self, instance: InstanceId) {
        self.ports.close(instance);
    }
}

/// Starts NIXL, if KV is to go that way.
fn nixl_agent(transport: KvTransport, folder: &Path) -> Result<Option<Arc<NixlAgent>>> {
    let start = || Nixl::open(folder).and_then(|nixl| NixlAgent::new(&nixl, NIXL_BYTES));
    match transport {
        KvTransport::Tcp => Ok(None),
        KvTransport::Nixl => match start() {
            Ok(agent) => Ok(Some(Arc::new(agent))),
            Err(error) => bail!("--kv-transport nixl: {error}"),
        },
        KvTransport::Auto if !has_rdma() => Ok(None),
        KvTransport::Auto => match start() {
            Ok(agent) => {
                tracing::info!("KV goes between processes over NIXL");
                Ok(Some(Arc::new(agent)))
            }
            Err(error) => {
                tracing::warn!("KV goes between processes over TCP: {error}");
                Ok(None)
            }
        },
    }
}

/// Returns whether the kernel lists a device for RDMA.
fn has_rdma() -> bool {
    std::fs::read_dir("/sys/class/infiniband").is_ok_and(|mut devices| devices.next().is_some())
}

/// Opens a deployment's gate for instances in other processes.
///
/// # Errors
/// The address can't be listened on.
pub(super) fn gate(
    args: &GateArgs,
    ports: &Ports,
    (checkpoint, config): (&Checkpoint, &InstanceConfig),
) -> Result<GateConfig> {
    let listener = TcpListener::bind(args.listen).with_context(|| {
        format!("can't listen on {}; choose another --instances-listen", args.listen)
    })?;
    let agent = nixl_agent(args.transport, &args.nixl)?;
    let reach = Reach::open(args.listen.ip(), ports, agent, None)?;
    Ok(GateConfig {
        listener,
        agreement: agreement(checkpoint, config)?,
        separates: args.separates,
        kv_address: reach.server.address().to_bytes(),
        neighbours: Arc::new(reach),
        wait_for: args.wait_for,
        patience: LOADING_PATIENCE,
    })
}

fn agreement(checkpoint: &Checkpoint, config: &InstanceConfig) -> Result<Agreement> {
    let (description, weights) = (checkpoint.describe(), checkpoint.fingerprint()?);
    Ok(Agreement {
        model: format!("{description}, weights {weights:016x}"),
        vocab_size: checkpoint.config().vocab_size,
        block_size: config.block_size,
        kv_type: match &config.device {
            DeviceConfig::Cpu(cpu) => format!("{:?} on a CPU", cpu.kv_type),
            DeviceConfig::Cuda(_) => {
                let dtype = stallfree_worker::cuda_dtype(checkpoint.config(), config.dtype);
                format!("{dtype:?} on a GPU")
            }
            DeviceConfig::Sim(_) => "simulated".to_owned(),
        },
    })
}

/// Runs an instance until its server ends or this process is told to.
///
/// # Errors
/// A flag doesn't work, there is no server, it has no use for this instance, or either of them fails.
pub(crate) fn run(args: &InstanceArgs, environment: &Environment) -> Result<()> {
    let config = InstanceConfig::resolve(&args.engine, environment)?;
    if config.nodes.is_some() {
        bail!("--nnodes: ranks in several processes can't join another server");
    }
    if matches!(config.device, DeviceConfig::Sim(_)) {
        bail!("--join: {SIMULATED_ALONE}");
    }
    let found = model_source::find(&args.engine.model, config.weights, environment)?;
    let checkpoint = open(&found.path, config.weights)?;
    let (server, ports) = (address(&args.joining.join)?, Ports::default());
    let agent = nixl_agent(args.joining.kv_transport, &environment.nixl())?;
    let reach = Reach::open(own_address(server)?, &ports, agent, Some(server.ip()))?;
    tracing::info!("Joining the server at {}", args.joining.join);
    let joined = stallfree_cluster::join(&JoinConfig {
        server: args.joining.join.clone(),
        agreement: agreement(&checkpoint, &config)?,
        role: args.joining.role.into(),
        kv_address: reach.server.address().to_bytes(),
        neighbours: Arc::new(reach),
        patience: NODE_PATIENCE,
    })?;
    let (instance, leases) = (joined.instance(), LeaseBook::default());
    tracing::info!("This is instance {instance}");
    let network = SimNetwork::default();
    let seat = Seat { instance, leases: leases.clone(), ports: ports.clone(), network };
    let started = start_device(Some(&checkpoint), &found.path, &config, Some(&seat));
    let built = match started.and_then(|started| build(started, &config, |_| None)) {
        Ok(built) => built,
        Err(error) => {
            joined.fail(&format!("{error:#}"));
            return Err(error);
        }
    };
    let Built { engine, worker, scheduler, .. } = built;
    let report = StartReport {
        role: args.joining.role.into(),
        phases: worker.phases.clone(),
        worker,
        policy: config.policy.clone(),
        scheduler,
        model_len: checkpoint.config().max_model_len(),
    };
    report::print_one(&report, &[]);
    tracing::info!("Running for {}", args.joining.join);
    joined.run(engine, leases, signals::stop())?;
    tracing::info!("Stopped");
    Ok(())
}

fn address(server: &str) -> Result<SocketAddr> {
    let mut found = server.to_socket_addrs().with_context(|| format!("--join {server}"))?;
    found.next().with_context(|| format!("--join {server}: there is no such host"))
}

/// Returns this machine's address as the server sees it.
fn own_address(server: SocketAddr) -> Result<IpAddr> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // Connecting sends nothing: it only looks for the way.
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(server).with_context(|| format!("there is no way to {server}"))?;
    Ok(socket.local_addr()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_reached_by_the_way_to_its_server() {
        let server = address("127.0.0.1:9").expect("an address");
        assert_eq!(own_address(server).expect("a way"), server.ip());
        assert!(address("nowhere").is_err());
    }
}
