// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where the guest wants each MSI and MSI-X vector delivered, and who is told when that changes.

use std::fmt;
use std::sync::Arc;

use vfio_user_protocol::extension::{IrqRoute, ROUTE_ENABLED, ROUTE_MASKED};

/// How many routes one message tells of at the most.
const BATCH: usize = 64;

/// Hears of changed routes; returns once whoever listens has taken note.
pub trait RouteSink: Send + Sync + fmt::Debug {
    /// The routes of consecutive vectors from `start` of MSI (1) or MSI-X (2).
    fn routes_changed(&self, index: u32, start: u32, routes: &[IrqRoute]);
}

/// The route of an enabled vector.
#[must_use]
pub fn enabled(address: u64, data: u32, masked: bool) -> IrqRoute {
    IrqRoute {
        address,
        data,
        flags: ROUTE_ENABLED | if masked { ROUTE_MASKED } else { 0 },
    }
}

/// No event of this vector may reach the guest now. (A disabled vector is not held back: it is not sent.)
#[must_use]
pub fn is_masked(route: &IrqRoute) -> bool {
    route.flags & ROUTE_MASKED != 0
}

/// The routes as last told.
#[derive(Debug, Default)]
pub struct Routes {
    known: Vec<Known>,
    sink: Option<Arc<dyn RouteSink>>,
}

#[derive(Debug)]
struct Known {
    index: u32,
    vector: u32,
    route: IrqRoute,
    changed: bool,
}

impl Routes {
    /// For `counts` vectors of each `(index, count)`, nothing enabled, nobody listening.
    #[must_use]
    pub fn new(counts: &[(u32, u32)]) -> Self {
        let known = counts.iter().flat_map(|&(index, count)| {
            let route = IrqRoute::default();
            (0..count).map(move |vector| Known {
                index,
                vector,
                route,
                changed: false,
            })
        });
        Self {
            known: known.collect(),
            sink: None,
        }
    }

    /// Sets who listens. A new listener knows of no enabled vector.
    pub fn set_sink(&mut self, sink: Option<Arc<dyn RouteSink>>) {
        self.sink = sink;
        for known in &mut self.known {
            known.route = IrqRoute::default();
            known.changed = false;
        }
    }

    /// Computes every route anew.
    pub fn refresh(&mut self, route: impl Fn(u32, u32) -> IrqRoute) {
        for known in &mut self.known {
            let route = route(known.index, known.vector);
            known.changed |= route != known.route;
            known.route = route;
        }
    }

    /// Every vector with its route: index, vector, route.
    pub fn iter(&self) -> impl Iterator<Item = (u32, u32, &IrqRoute)> {
        self.known
            .iter()
            .map(|known| (known.index, known.vector, &known.route))
    }

    /// Tells of what changed since the last time, in runs of consecutive vectors.
    pub fn announce(&mut self) {
        let mut rest = &mut self.known[..];
        while let Some(first) = rest.iter().position(|known| known.changed) {
            rest = &mut rest[first..];
            let index = rest[0].index;
            let run = rest.iter().take(BATCH);
            let run = run
                .take_while(|known| known.changed && known.index == index)
                .count();
            let mut routes = [IrqRoute::default(); BATCH];
            for (route, known) in routes.iter_mut().zip(&mut rest[..run]) {
                *route = known.route;
                known.changed = false;
            }
            if let Some(sink) = &self.sink {
                sink.routes_changed(index, rest[0].vector, &routes[..run]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Debug, Default)]
    struct Heard(Mutex<Vec<(u32, u32, usize)>>);

    impl RouteSink for Heard {
        fn routes_changed(&self, index: u32, start: u32, routes: &[IrqRoute]) {
            self.0.lock().unwrap().push((index, start, routes.len()));
        }
    }

    #[test]
    fn only_changes_are_told_in_runs_within_an_index() {
        let heard = Arc::new(Heard::default());
        let mut routes = Routes::new(&[(1, 2), (2, 100)]);
        routes.set_sink(Some(heard.clone()));
        routes.announce();
        routes.refresh(|index, vector| match (index, vector) {
            (1, 1) | (2, 0 | 1 | 5) => enabled(0xfee0_0000, vector, false),
            _ => IrqRoute::default(),
        });
        routes.announce();
        routes.announce();
        assert_eq!(
            std::mem::take(&mut *heard.0.lock().unwrap()),
            [(1, 1, 1), (2, 0, 2), (2, 5, 1)]
        );
        routes.refresh(|_, vector| enabled(0xfee0_0000, vector, true));
        routes.announce();
        assert_eq!(
            *heard.0.lock().unwrap(),
            [(1, 0, 2), (2, 0, 64), (2, 64, 36)]
        );
    }
}
