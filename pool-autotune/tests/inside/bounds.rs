//! Bounds, and the capacity that they are made from.

use super::*;

const PLAN: Plan = Plan {
    requests_per_second: 400.0,
    mean_service_time: Duration::from_millis(25),
    headroom: 1.5,
    server_max: 180,
    instances: 8,
};

#[test]
fn a_plan_that_does_not_add_up_names_the_input() {
    let refused = |plan| {
        Bounds::from_capacity(plan)
            .expect_err("it cannot be")
            .to_string()
    };
    assert_eq!(
        refused(Plan {
            instances: 13,
            ..PLAN
        }),
        "server_max is 180: 400 requests/s of 25ms with headroom 1.5 need 15 connections, and \
         each of 13 instances may have 13"
    );
    assert_eq!(
        refused(Plan {
            server_max: 5,
            ..PLAN
        }),
        "server_max is 5: not one connection for each of 8 instances"
    );
    assert!(
        refused(Plan {
            requests_per_second: f64::NAN,
            ..PLAN
        })
        .starts_with("requests_per")
    );
    assert!(
        refused(Plan {
            mean_service_time: Duration::ZERO,
            ..PLAN
        })
        .starts_with("mean_serv")
    );
    assert!(
        refused(Plan {
            headroom: 0.5,
            ..PLAN
        })
        .starts_with("headroom is 0.5")
    );
    assert!(
        refused(Plan {
            instances: 0,
            ..PLAN
        })
        .starts_with("instances is 0")
    );
}

#[test]
fn a_small_plan_still_leaves_room_for_a_nested_checkout() {
    let small = Plan {
        requests_per_second: 1.0,
        ..PLAN
    };
    assert_eq!(Bounds::from_capacity(small), Ok(Bounds { min: 2, max: 2 }));
    let single = Plan {
        server_max: 8,
        ..small
    };
    assert_eq!(Bounds::from_capacity(single), Ok(Bounds { min: 1, max: 1 }));
}
