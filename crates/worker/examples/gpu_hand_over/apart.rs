//! An instance in a process of its own: CUDA gives what fails on one GPU to all GPUs of a process.

use std::io::BufRead as _;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use stallfree_cluster::{Agreement, GateConfig, JoinConfig, Neighbours, Role, join};
use stallfree_core::{InstanceId, LeaseBook};
use stallfree_kernels::cuda::Trap;
use stallfree_models::Checkpoint;
use stallfree_transfer::{KvAddress, KvNetwork, KvServer, Ports};

use crate::Outcome;
use crate::deployment::{BLOCK_SIZE, Member, Settings, StepLog, engine, executor, kernel_cache};

const HOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// The KV of both processes, as this one reads and shows it.
struct Reach {
    ports: Ports,
    network: KvNetwork,
    server: KvServer,
}

impl Reach {
    fn open(ports: &Ports) -> Outcome<Arc<Self>> {
        let server = KvServer::start(HOST, ports.clone(), None)?;
        Ok(Arc::new(Self { ports: ports.clone(), network: KvNetwork::new(None), server }))
    }

    fn address(&self) -> Vec<u8> {
        self.server.address().to_bytes()
    }
}

impl Neighbours for Reach {
    fn came(&self, instance: InstanceId, kv_address: &[u8]) {
        match KvAddress::from_bytes(kv_address, Some(HOST)) {
            Ok(address) => self.ports.open(instance, self.network.port(instance, address)),
            Err(error) => println!("KV of instance {instance} can't be read: {error}"),
        }
    }

    fn left(&self, instance: InstanceId) {
        self.ports.close(instance);
    }
}

fn agreement(checkpoint: &Checkpoint) -> Agreement {
    Agreement {
        model: checkpoint.describe(),
        vocab_size: checkpoint.config().vocab_size,
        block_size: BLOCK_SIZE,
        kv_type: "F16 on a GPU".to_owned(),
    }
}

/// Where one instance in another process joins; returns the port, too.
pub(crate) fn gate(checkpoint: &Checkpoint, ports: &Ports) -> Outcome<(GateConfig, u16)> {
    let listener = TcpListener::bind((HOST, 0))?;
    let port = listener.local_addr()?.port();
    let reach = Reach::open(ports)?;
    let gate = GateConfig {
        listener,
        agreement: agreement(checkpoint),
        separates: true,
        kv_address: reach.address(),
        neighbours: reach,
        wait_for: 1,
        patience: Duration::from_secs(60),
    };
    Ok((gate, port))
}

/// Starts the other process. A line to its input makes its GPU fail.
pub(crate) fn spawn(port: u16, role: Role, gpu: usize) -> Outcome<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["join", &port.to_string(), &role.to_string(), &gpu.to_string()]);
    Ok(command.stdin(Stdio::piped()).spawn()?)
}

/// Is the other process.
pub(crate) fn run(
    checkpoint: &Checkpoint,
    (port, member): (u16, &Member),
    settings: &Settings,
) -> Outcome<()> {
    let ports = Ports::default();
    let reach = Reach::open(&ports)?;
    let joined = join(&JoinConfig {
        server: format!("{HOST}:{port}"),
        agreement: agreement(checkpoint),
        role: member.role,
        kv_address: reach.address(),
        neighbours: reach,
        patience: Duration::from_secs(20),
    })?;
    let leases = LeaseBook::default();
    let mut executor = executor(checkpoint, member, settings)?;
    executor.join(&ports, joined.instance(), leases.clone())?;
    let trap = Trap::set(member.first_gpu, &kernel_cache())?;
    std::thread::Builder::new().name("trap".to_owned()).spawn(move || {
        match std::io::stdin().lock().lines().next() {
            Some(_) => trap.spring(),
            None => Ok(()),
        }
    })?;
    let engine = engine(executor, member, settings, &StepLog::default())?;
    Ok(joined.run(engine, leases, std::future::pending())?)
}
