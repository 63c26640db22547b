//! What an instance has that drains goes on elsewhere: from its KV, where that is computed, and with the same tokens.

#[path = "hand_over/deployment.rs"]
mod deployment;

use std::time::Duration;

use deployment::{Deployment, check_answer};
use stallfree_cluster::{ClusterReplay, Role};
use stallfree_core::{InstanceId, Request, Time};
use stallfree_engine::{InstanceChange, OutputStream, SeqOutput};
use stallfree_testkit::traffic;

const DRAIN: InstanceChange = InstanceChange { role: None, draining: Some(true) };

/// Runs four requests, changes an instance at a moment, and returns the outputs once all have ended.
fn check(
    deployment: &Deployment,
    (instance, at_ms, change): (u32, u64, InstanceChange),
) -> (ClusterReplay, Vec<SeqOutput>) {
    let requests: Vec<Request> =
        traffic("4x0:30+30").into_iter().map(|(_, request)| request).collect();
    let mut replay = deployment.start();
    let mut streams: Vec<OutputStream> =
        requests.iter().map(|request| replay.submit(request.clone())).collect();
    replay.run_until(Time::ZERO + Duration::from_millis(at_ms));
    replay.change_instance(InstanceId(instance), change);
    while replay.step(Time::MAX) {}
    let outputs: Vec<SeqOutput> = streams.iter_mut().map(OutputStream::take).collect();
    for (output, request) in outputs.iter().zip(&requests) {
        check_answer(output, request, deployment);
    }
    deployment.check_empty(&replay);
    (replay, outputs)
}

fn roomy(roles: &[Role]) -> Deployment {
    let mut deployment = Deployment::new(roles.len(), 1);
    deployment.roles = roles.to_vec();
    deployment.case.num_blocks = 200;
    deployment
}

/// Returns how many tokens each instance has produced.
fn produced(replay: &ClusterReplay) -> Vec<u64> {
    replay.engines().map(|engine| engine.stats().generation_tokens).collect()
}

#[test]
fn decodes_go_on_from_their_kv() {
    for max_in_flight in [1, 2] {
        let mut deployment = roomy(&[Role::Prefill, Role::Decode, Role::Decode]);
        deployment.case.max_in_flight = max_in_flight;
        let (undisturbed, _) = check(&deployment, (1, 60, InstanceChange::default()));
        let (replay, outputs) = check(&deployment, (1, 60, DRAIN));
        // It had begun; the other one did the rest, and nobody computed a prompt again.
        let [_, drained, other] = produced(&replay)[..] else { panic!("three instances") };
        assert!((1..30).contains(&drained) && other > 80, "{drained} and {other}");
        let computed = |replay: &ClusterReplay| -> u64 {
            replay.engines().map(|engine| engine.stats().prompt_tokens).sum()
        };
        assert_eq!(computed(&replay), computed(&undisturbed));
        let preemptions = outputs.iter().filter_map(|output| output.finished.as_ref());
        assert_eq!(preemptions.map(|end| end.num_preemptions).sum::<usize>(), 0);
    }
}

#[test]
fn whoever_drains_takes_nothing_new() {
    for (roles, instance) in [
        (vec![Role::Mixed, Role::Mixed], 1),
        (vec![Role::Prefill, Role::Prefill, Role::Decode], 1),
        (vec![Role::Prefill, Role::Decode, Role::Decode], 2),
    ] {
        let (replay, _) = check(&roomy(&roles), (instance, 0, DRAIN));
        // What had come before may end its next token there.
        assert!(produced(&replay)[instance as usize] <= 4, "{roles:?}: {:?}", produced(&replay));
    }
}

#[test]
fn the_last_of_a_kind_is_replaced_by_others_and_the_last_of_all_goes_on() {
    for (roles, instance) in [
        (vec![Role::Prefill, Role::Decode], 0),
        (vec![Role::Prefill, Role::Decode], 1),
        (vec![Role::Mixed], 0),
    ] {
        for at_ms in [0, 3, 20, 60, 100] {
            check(&roomy(&roles), (instance, at_ms, DRAIN));
        }
    }
}

#[test]
fn roles_change() {
    let becomes = |role| InstanceChange { role: Some(role), draining: None };
    for role in [Role::Prefill, Role::Decode, Role::Mixed] {
        for at_ms in [0, 10, 50] {
            check(&roomy(&[Role::Prefill, Role::Decode, Role::Decode]), (1, at_ms, becomes(role)));
            check(&roomy(&[Role::Prefill, Role::Decode]), (0, at_ms, becomes(role)));
        }
    }
}
