use stallfree_scheduler::Ordering;
use stallfree_worker::KvSize;

use super::{DeviceConfig, GenerationFrom, InstanceConfig, TemplateFrom, TokenBudget};
use crate::args::{Kernels, serve_args};
use crate::environment::Environment;

fn resolve(line: &str) -> Result<InstanceConfig, String> {
    let argv: Vec<&str> = ["stallfree", "serve"]
        .into_iter()
        .chain(line.split(' ').filter(|word| !word.is_empty()))
        .collect();
    let args = serve_args(&argv).map_err(|error| error.to_string())?;
    InstanceConfig::resolve(&args.engine, &Environment::read())
        .map_err(|error| format!("{error:#}"))
}

#[test]
fn flags_become_decisions() {
    let config = resolve("").unwrap();
    assert_eq!(config.token_budget, TokenBudget::Measured);
    assert_eq!(config.kv_size, KvSize::Auto);
    assert!(config.scheduler.enable_prefix_caching);
    assert_eq!(config.chat_template, TemplateFrom::Model);

    let config = resolve(
        "--scheduler vllm --max-num-batched-tokens 2k --kv-cache-memory-bytes 1G --no-enable-prefix-caching \
         --scheduling-policy priority --generation-config vllm --device cpu --threads 3 --chat-template {{x}}",
    )
    .unwrap();
    assert_eq!(config.policy, "vllm");
    assert_eq!(config.token_budget, TokenBudget::Exactly(2000));
    assert_eq!(config.kv_size, KvSize::Bytes(1 << 30));
    assert!(!config.scheduler.enable_prefix_caching);
    assert_eq!(config.scheduler.ordering, Ordering::Priority);
    assert_eq!(config.generation, GenerationFrom::Neutral);
    let DeviceConfig::Cpu(cpu) = config.device else { panic!("{config:?}") };
    assert_eq!(cpu.num_threads, 3);
    assert_eq!(config.chat_template, TemplateFrom::Text("{{x}}".to_owned()));
}

#[test]
fn a_gpu_is_taken_where_there_is_one() {
    let is_usable = stallfree_device::gpu_is_usable(0).is_ok();
    let kind = |line: &str| match resolve(line) {
        Ok(InstanceConfig { device: DeviceConfig::Cuda(gpu), .. }) => Some(Some(gpu)),
        Ok(InstanceConfig { device: DeviceConfig::Cpu(_), .. }) => Some(None),
        Ok(InstanceConfig { device: DeviceConfig::Sim(_), .. }) | Err(_) => None,
    };
    assert_eq!(kind("--device cpu"), Some(None));
    assert_eq!(kind("--device auto").map(|gpu| gpu.is_some()), Some(is_usable));
    assert_eq!(kind("--device cuda").is_some(), is_usable);
    if let Some(Some(gpu)) = kind("--gpu-memory-utilization 0.5 --kernels sm80 --enforce-eager") {
        assert_eq!(
            (gpu.memory_utilization.to_bits(), gpu.kernels),
            (0.5f64.to_bits(), Kernels::Sm80)
        );
        assert_eq!((gpu.peer_memory, gpu.records), (true, false));
    }
    let blocks = resolve("--num-gpu-blocks-override 7 --kv-cache-memory-bytes 1G").unwrap();
    assert_eq!(blocks.kv_size, KvSize::Blocks(7), "a number of blocks comes before bytes");
}

#[test]
fn what_can_not_work_is_said_before_anything_is_loaded() {
    let check = |line: &str, expected: &str| {
        let error = resolve(line).expect_err(line);
        assert!(error.contains(expected), "{line}: {error}");
    };
    check("--scheduler sarathy", "sarathi");
    check("--scheduler orca --scheduler-config speed=9", "speed");
    check("--gpu-memory-utilization 0", "more than 0");
    check("--gpu-memory-utilization 1.5", "at most 1");
    check("--kv-cache-memory-bytes much", "'much'");
    check("--num-gpu-blocks-override 0", "at least 1");
    if let Err(problem) = stallfree_device::gpu_is_usable(0) {
        check("--device cuda", &problem.to_string());
        check("--device cuda", "--device cpu");
    }
    check("--device cpu --tensor-parallel-size 2 --nnodes 3", "does not divide the 2 ranks");
    check("--device cpu --tensor-parallel-size 2 --nnodes 2 --node-rank 2", "not below --nnodes 2");
    let two_nodes = "--device cpu --tensor-parallel-size 2 --nnodes 2 --master-port 0";
    resolve(two_nodes).expect("node 0 takes a free port");
    check(&format!("{two_nodes} --node-rank 1"), "the port that node 0 has taken");
    check("--device sim:h100-sxm --tensor-parallel-size 2 --nnodes 2", "one process");
    check("--device sim:tpu", "h100-sxm");
    check("--device sim", "sim:h100-sxm");
    check("--threads 0", "at least 1");
    check("--tokenizer /nowhere", "/nowhere");
    check("--chat-template /nowhere", "/nowhere");
    check("--generation-config /nowhere", "/nowhere/generation_config.json");
}
