use stallfree_scheduler::Ordering;
use stallfree_worker::KvSize;

use super::{DeviceConfig, GenerationFrom, InstanceConfig, TemplateFrom, TokenBudget};
use crate::args::serve_args;
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
fn what_can_not_work_is_said_before_anything_is_loaded() {
    let check = |line: &str, expected: &str| {
        let error = resolve(line).expect_err(line);
        assert!(error.contains(expected), "{line}: {error}");
    };
    check("--scheduler sarathy", "sarathi");
    check("--scheduler orca --scheduler-config speed=9", "speed");
    check("--device cuda", "--device cpu");
    check("--device sim:tpu", "h100-sxm");
    check("--device sim", "sim:h100-sxm");
    check("--threads 0", "at least 1");
    check("--tokenizer /nowhere", "/nowhere");
    check("--chat-template /nowhere", "/nowhere");
    check("--generation-config /nowhere", "/nowhere/generation_config.json");
}
