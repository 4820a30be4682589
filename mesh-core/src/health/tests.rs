//! States and steps, and which checks there are.

use std::time::{Duration, Instant};

use super::machine::{Do, Machine, Outcome, State};
use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn rules() -> Rules {
    Rules {
        interval: SECOND,
        timeout: SECOND,
        jitter_percent: 20,
        healthy: 2,
        unhealthy: 3,
        grace: 10 * SECOND,
    }
}

fn recovery(steps: &[(u32, Action)]) -> Recovery {
    let steps = steps.iter().map(|(after, action)| Step { after: *after, action: action.clone() }).collect();
    Recovery { steps, readmit: 0 }
}

/// One check a second; `+` passes, `-` fails. States after each.
#[track_caller]
fn check(machine: &mut Machine, outcomes: &str, want: &str) {
    let (begin, none) = (Instant::now(), Recovery::default());
    let mut seen = String::new();
    for (i, outcome) in outcomes.chars().enumerate() {
        let before = machine.state();
        let took = machine.took(&rules(), &none, outcome == '+', begin + SECOND * i as u32);
        assert_eq!(took.changed, machine.state() != before);
        seen.push(match machine.state() {
            State::Starting => 's',
            State::Healthy => 'h',
            State::Unhealthy => 'u',
        });
    }
    assert_eq!(seen, want, "{outcomes}");
}

#[test]
fn it_takes_several_in_a_row() {
    let begin = Instant::now();
    check(&mut Machine::new(State::Healthy, false, begin), "--+--+---", "hhhhhhhhu");
    check(&mut Machine::new(State::Unhealthy, false, begin), "+-+-++", "uuuuuh");
}

#[test]
fn one_pass_ends_the_start_and_failures_in_its_grace_do_not_count() {
    let begin = Instant::now();
    check(&mut Machine::new(State::Starting, false, begin), "----+---", "sssshhhu");
    check(&mut Machine::new(State::Starting, false, begin), "--------------", "ssssssssssssuu");
}

#[test]
fn the_interval_is_drawn_apart() {
    let rules = rules();
    let all: Vec<f64> = [0.0, 0.5, 1.0].iter().map(|r| rules.wait(*r).as_secs_f64()).collect();
    assert_eq!(all, [0.9, 1.0, 1.1]);
    assert!(rules.first(1.0) <= SECOND / 4);
}

fn fails(machine: &mut Machine, recovery: &Recovery, at: Instant) -> Vec<Do> {
    machine.took(&rules(), recovery, false, at).todo
}

#[test]
fn steps_are_taken_once_and_undone_when_it_is_well() {
    let (begin, hook) = (Instant::now(), || Action::Webhook("https://a/".into()));
    let steps = recovery(&[(1, Action::Drain), (4, hook()), (5, Action::Eject)]);
    let mut machine = Machine::new(State::Healthy, false, begin);
    let mut seen = Vec::new();
    for i in 0..8 {
        seen.push(fails(&mut machine, &steps, begin + SECOND * i));
    }
    let step = |action: Action| vec![Do::Step(action)];
    let want =
        [vec![], vec![], step(Action::Drain), step(hook()), step(Action::Eject), vec![], vec![], vec![]];
    assert_eq!(seen, want);
    assert!(machine.drained());
    assert_eq!(machine.took(&rules(), &steps, true, begin), Outcome::default());
    let well = machine.took(&rules(), &steps, true, begin);
    assert_eq!(well, Outcome { changed: true, todo: vec![Do::Readmit, Do::Tell("https://a/".into())] });
    assert!(!machine.drained());
}

#[test]
fn a_service_says_itself_when_it_comes_back() {
    let begin = Instant::now();
    let careful = Recovery { readmit: 4, ..Recovery::default() };
    let mut machine = Machine::new(State::Unhealthy, true, begin);
    let changes: Vec<bool> = (0..4).map(|_| machine.took(&rules(), &careful, true, begin).changed).collect();
    assert_eq!(changes, [false, false, false, true]);
}

#[test]
fn restarts_come_again_and_end() {
    let restart = Action::Restart { command: "again".into(), at_most: 2 };
    let steps = recovery(&[(4, restart.clone())]);
    let mut at = Instant::now();
    let mut machine = Machine::new(State::Healthy, false, at);
    let mut seen = Vec::new();
    for _ in 0..60 {
        at += SECOND;
        for todo in fails(&mut machine, &steps, at) {
            if matches!(todo, Do::Step(_)) {
                machine.restarted(&steps, at);
            }
            seen.push(todo);
        }
    }
    assert_eq!(seen, [Do::Step(restart.clone()), Do::Step(restart), Do::GiveUp("again".into())]);
}
