//! Who is served next, and who gives way: weighted fair shares of service.
//!
//! Service is the time that a tenant's tokens took, at their measured cost, divided by the
//! tenant's weight. The tenant that has had least goes first, and one that was away gets no credit
//! for it (the virtual token counter of Sheng et al., "Fairness in Serving Large Language Models",
//! OSDI 2024, with seconds for tokens). Within a tenant requests go in order of arrival; a lower
//! priority number goes before all of them.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::sync::Arc;

use crate::plan::Level;

/// All tenants that were ever seen, up to [`MOST`].
#[derive(Debug)]
pub(crate) struct Fair {
    weights: BTreeMap<String, f64>,
    /// Seconds of weighted service that make one level.
    quantum: f64,
    numbers: HashMap<Arc<str>, usize>,
    tenants: Vec<Tenant>,
    // Of this step.
    step: u64,
    least: f64,
    live_weight: f64,
}

/// Tenants beyond this many share one account, so that made-up names cost no memory.
const MOST: usize = 10_000;

#[derive(Debug)]
struct Tenant {
    weight: f64,
    /// Seconds of service over the weight.
    service: f64,
    /// Requests that have not ended.
    live: usize,
    /// The step in which what follows was counted.
    step: u64,
    requests: usize,
    pages: usize,
}

/// What there is to share.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Whole {
    /// Requests that run at once.
    pub(crate) requests: usize,
    /// Pages.
    pub(crate) pages: usize,
}

/// A request, as far as its turn depends on it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Turn {
    /// Its tenant's number.
    pub(crate) tenant: usize,
    pub(crate) priority: i32,
    /// Whether it runs: of a tenant's requests those that run come first.
    pub(crate) running: bool,
    /// Service that it is about to get, in seconds.
    pub(crate) seconds: f64,
}

impl Fair {
    pub(crate) fn new(weights: BTreeMap<String, f64>, quantum: f64) -> Fair {
        Fair {
            weights,
            quantum,
            numbers: HashMap::new(),
            tenants: Vec::new(),
            step: 0,
            least: 0.0,
            live_weight: 1.0,
        }
    }

    /// A request of a tenant has come. Its number is good until the engine ends.
    pub(crate) fn enter(&mut self, tenant: &Arc<str>) -> usize {
        let least = self.least_service();
        let number = match self.numbers.get(tenant) {
            Some(&number) => number,
            None if self.tenants.len() >= MOST => MOST - 1,
            None => {
                let weight = self.weights.get(&**tenant).copied().unwrap_or(1.0);
                self.numbers.insert(tenant.clone(), self.tenants.len());
                self.tenants.push(Tenant {
                    weight,
                    service: 0.0,
                    live: 0,
                    step: 0,
                    requests: 0,
                    pages: 0,
                });
                self.tenants.len() - 1
            }
        };
        let tenant = &mut self.tenants[number];
        if tenant.live == 0 {
            tenant.service = tenant.service.max(least.unwrap_or(0.0));
        }
        tenant.live += 1;
        number
    }

    /// A tenant's request has ended.
    pub(crate) fn leave(&mut self, tenant: usize) {
        self.tenants[tenant].live -= 1;
    }

    /// A tenant got service.
    pub(crate) fn charge(&mut self, tenant: usize, seconds: f64) {
        let tenant = &mut self.tenants[tenant];
        tenant.service += seconds / tenant.weight;
    }

    /// Service of the tenant that has had least of those that want some.
    fn least_service(&self) -> Option<f64> {
        let live = self.tenants.iter().filter(|t| t.live > 0);
        live.map(|t| t.service).min_by(f64::total_cmp)
    }

    /// A step is planned: nothing is counted yet.
    pub(crate) fn begin(&mut self) {
        self.step += 1;
        self.least = self.least_service().unwrap_or(0.0);
        let live = self.tenants.iter().filter(|t| t.live > 0);
        self.live_weight = live.map(|t| t.weight).sum();
    }

    /// What a request of a tenant gives way for, with `pages` pages, when those of its requests
    /// that were asked about in this step come before it.
    pub(crate) fn level(
        &mut self,
        tenant: usize,
        priority: i32,
        pages: usize,
        whole: Whole,
    ) -> Level {
        let (step, least, live) = (self.step, self.least, self.live_weight);
        let tenant = &mut self.tenants[tenant];
        if tenant.step != step {
            (tenant.step, tenant.requests, tenant.pages) = (step, 0, 0);
        }
        tenant.requests += 1;
        tenant.pages += pages;
        let share = |of: usize| (of as f64 * tenant.weight / live).max(1.0);
        // Alone, a tenant has all there is.
        let shares = tenant.weight < live;
        let beyond = shares
            && (tenant.requests as f64 > share(whole.requests)
                || (tenant.requests > 1 && tenant.pages as f64 > share(whole.pages)));
        Level {
            priority,
            beyond_share: beyond,
            ahead: ((tenant.service - least) / self.quantum).max(0.0) as u32,
        }
    }

    /// The order in which requests are served; `turns` are in order of arrival.
    pub(crate) fn order(&self, turns: &[Turn], order: &mut Vec<usize>) {
        order.clear();
        order.extend(0..turns.len());
        let key = |&i: &usize| (turns[i].priority, !turns[i].running);
        order.sort_by_key(key);
        let alike = |&a: &usize, &b: &usize| turns[a].priority == turns[b].priority;
        let mut start = 0;
        for group in order.clone().chunk_by(alike) {
            self.share(turns, group, &mut order[start..start + group.len()]);
            start += group.len();
        }
    }

    /// Puts requests of one priority in order: always the next of the tenant that will have had
    /// least when those before it are served.
    fn share(&self, turns: &[Turn], group: &[usize], out: &mut [usize]) {
        let first = turns[group[0]].tenant;
        if group.iter().all(|&i| turns[i].tenant == first) {
            return;
        }
        let mut queues: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for &i in group.iter().rev() {
            queues.entry(turns[i].tenant).or_default().push(i);
        }
        let entry = |tenant: usize, service: f64, queue: &[usize]| {
            let next = *queue.last()?;
            Some(Reverse(Entry {
                service,
                next,
                tenant,
            }))
        };
        let mut heap: BinaryHeap<_> = queues
            .iter()
            .filter_map(|(&tenant, queue)| entry(tenant, self.tenants[tenant].service, queue))
            .collect();
        for place in out {
            let Some(Reverse(Entry {
                service,
                next,
                tenant,
            })) = heap.pop()
            else {
                return;
            };
            *place = next;
            let queue = queues.entry(tenant).or_default();
            queue.pop();
            let service = service + turns[next].seconds / self.tenants[tenant].weight;
            heap.extend(entry(tenant, service, queue));
        }
    }
}

/// A tenant's next request.
#[derive(Debug)]
struct Entry {
    service: f64,
    next: usize,
    tenant: usize,
}

impl Ord for Entry {
    fn cmp(&self, other: &Entry) -> Ordering {
        self.service
            .total_cmp(&other.service)
            .then(self.next.cmp(&other.next))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Entry) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Entry) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Entry {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fair(weights: &[(&str, f64)]) -> Fair {
        let weights = weights.iter().map(|(n, w)| (n.to_string(), *w)).collect();
        Fair::new(weights, 1.0)
    }

    fn turn(tenant: usize, seconds: f64) -> Turn {
        Turn {
            tenant,
            priority: 0,
            running: false,
            seconds,
        }
    }

    fn order(fair: &Fair, turns: &[Turn]) -> Vec<usize> {
        let mut order = Vec::new();
        fair.order(turns, &mut order);
        order
    }

    #[test]
    fn one_tenant_is_served_in_order_of_arrival_and_what_runs_goes_on() {
        let mut fair = fair(&[]);
        let tenant = fair.enter(&"a".into());
        let runs = Turn {
            running: true,
            ..turn(tenant, 1.0)
        };
        let turns = [turn(tenant, 1.0), runs, turn(tenant, 1.0), runs];
        assert_eq!(order(&fair, &turns), [1, 3, 0, 2]);
    }

    #[test]
    fn a_flood_waits_for_its_own_requests_only() {
        let mut fair = fair(&[]);
        let (flood, other) = (fair.enter(&"flood".into()), fair.enter(&"other".into()));
        fair.charge(flood, 0.5);
        let turns = [turn(flood, 1.0), turn(flood, 1.0), turn(other, 1.0)];
        assert_eq!(order(&fair, &turns), [2, 0, 1]);
        fair.charge(flood, 3.7);
        assert_eq!((ahead(&mut fair, flood), ahead(&mut fair, other)), (4, 0));
    }

    fn ahead(fair: &mut Fair, tenant: usize) -> u32 {
        fair.begin();
        let whole = Whole {
            requests: 1,
            pages: 1,
        };
        fair.level(tenant, 0, 0, whole).ahead
    }

    #[test]
    fn what_is_beyond_a_tenants_share_is_told() {
        let mut fair = fair(&[("big", 3.0)]);
        let (big, small) = (fair.enter(&"big".into()), fair.enter(&"small".into()));
        fair.begin();
        let whole = Whole {
            requests: 8,
            pages: 80,
        };
        let beyond: Vec<bool> = [(big, 9); 7]
            .into_iter()
            .chain([(small, 15), (small, 6)])
            .map(|(tenant, pages)| fair.level(tenant, 0, pages, whole).beyond_share)
            .collect();
        let expected = [false, false, false, false, false, false, true, false, true];
        assert_eq!(beyond, expected);
    }

    #[test]
    fn shares_follow_weights() {
        let mut fair = fair(&[("big", 3.0)]);
        let (big, small) = (fair.enter(&"big".into()), fair.enter(&"small".into()));
        let mut served = [0usize, 0];
        for _ in 0..400 {
            let turns = [turn(small, 1.0), turn(big, 1.0)];
            let next = turns[order(&fair, &turns)[0]].tenant;
            fair.charge(next, 1.0);
            served[next] += 1;
        }
        assert!(served[big].abs_diff(300) <= 1, "{served:?}");
    }

    #[test]
    fn one_that_was_away_gets_no_credit_for_it() {
        let mut fair = fair(&[]);
        let (a, b) = (fair.enter(&"a".into()), fair.enter(&"b".into()));
        fair.leave(b);
        fair.charge(a, 100.0);
        assert_eq!(fair.enter(&"b".into()), b);
        assert_eq!(ahead(&mut fair, a), 0);
    }

    #[test]
    fn a_lower_priority_number_goes_first_whoever_asks() {
        let mut fair = fair(&[]);
        let (a, b) = (fair.enter(&"a".into()), fair.enter(&"b".into()));
        fair.charge(a, 9.0);
        let first = Turn {
            priority: -1,
            ..turn(a, 1.0)
        };
        assert_eq!(order(&fair, &[turn(b, 1.0), first]), [1, 0]);
    }

    proptest! {
        #[test]
        fn every_request_has_one_place(
            turns in prop::collection::vec((0usize..4, 0i32..3, any::<bool>(), 0.0f64..2.0), 0..30),
        ) {
            let mut fair = fair(&[]);
            for name in ["a", "b", "c", "d"] {
                fair.enter(&name.into());
            }
            let turns: Vec<Turn> = turns
                .into_iter()
                .map(|(tenant, priority, running, seconds)| Turn { tenant, priority, running, seconds })
                .collect();
            let mut order = order(&fair, &turns);
            // A tenant's requests of one priority and state keep their order.
            for pair in order.windows(2) {
                let (a, b) = (turns[pair[0]], turns[pair[1]]);
                prop_assert!(a.priority <= b.priority);
                if (a.tenant, a.priority, a.running) == (b.tenant, b.priority, b.running) {
                    prop_assert!(pair[0] < pair[1]);
                }
            }
            order.sort_unstable();
            prop_assert_eq!(order, (0..turns.len()).collect::<Vec<_>>());
        }
    }
}
