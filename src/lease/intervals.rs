//! A set of byte ranges that may overlap, searched by overlap.
//!
//! A treap over the start of the ranges, each node knowing the furthest end below it, so that a
//! subtree that ends too early is skipped whole: insert, remove and "does any range overlap this
//! one" cost O(log n) for any set of ranges. Existing maps do not fit: `rangemap` holds disjoint
//! ranges, and with a step function of counts one long lease costs as much as all short leases
//! below it. Nodes live in one vector, so that a lease costs no allocation once the vector has
//! grown.

use crate::range::ByteRange;

/// No node.
const NIL: u32 = u32::MAX;

/// The capacity, in ranges, that an empty set keeps.
const KEPT: usize = 1024;

/// Names a range in the set it was inserted into, until it is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key(pub(super) u32);

/// A set of ranges, each with a value.
#[derive(Debug)]
pub(crate) struct Intervals<V> {
    nodes: Vec<Node<V>>,
    /// Indices of nodes that are not in the tree.
    vacant: Vec<u32>,
    root: u32,
    /// State of the generator of priorities (xorshift).
    seed: u32,
}

#[derive(Debug)]
struct Node<V> {
    range: ByteRange,
    value: V,
    priority: u32,
    /// The furthest end in this subtree.
    furthest: u64,
    left: u32,
    right: u32,
}

impl<V: Default> Intervals<V> {
    pub(crate) const fn new() -> Self {
        Self {
            nodes: Vec::new(),
            vacant: Vec::new(),
            root: NIL,
            seed: 0x9e37_79b9,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.nodes.len() - self.vacant.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.root == NIL
    }

    /// Adds a range, which is not empty.
    pub(crate) fn insert(&mut self, range: ByteRange, value: V) -> Key {
        let node = Node {
            range,
            value,
            priority: self.next_priority(),
            furthest: range.end(),
            left: NIL,
            right: NIL,
        };
        let index = match self.vacant.pop() {
            Some(index) => {
                self.nodes[index as usize] = node;
                index
            }
            None => {
                let index = u32::try_from(self.nodes.len()).expect("fewer than 2^32 leases");
                assert_ne!(index, NIL, "fewer than 2^32 leases");
                self.nodes.push(node);
                index
            }
        };
        let (before, after) = self.split(self.root, (range.start(), index));
        let before = self.join(before, index);
        self.root = self.join(before, after);
        Key(index)
    }

    /// Removes a range and returns its value.
    pub(crate) fn remove(&mut self, key: Key) -> V {
        let place = self.place(key.0);
        let (before, rest) = self.split(self.root, place);
        let (removed, after) = self.split(rest, (place.0, place.1 + 1));
        debug_assert_eq!(removed, key.0);
        self.root = self.join(before, after);
        self.vacant.push(key.0);
        let value = std::mem::take(&mut self.nodes[key.0 as usize].value);
        if self.is_empty() && self.nodes.capacity() > KEPT {
            // A burst of leases does not keep its memory forever.
            self.nodes = Vec::new();
            self.vacant = Vec::new();
        }
        value
    }

    /// Returns any range that shares a byte with `range`.
    pub(crate) fn find_overlap(&self, range: ByteRange) -> Option<Key> {
        let mut at = self.root;
        while at != NIL {
            let node = &self.nodes[at as usize];
            if node.range.overlaps(range) {
                return Some(Key(at));
            }
            // If the left subtree reaches into the range but has no overlap, then its furthest
            // range starts behind the range, and so does everything on the right.
            let reaches =
                node.left != NIL && self.nodes[node.left as usize].furthest > range.start();
            at = if reaches { node.left } else { node.right };
        }
        None
    }

    pub(crate) fn overlaps(&self, range: ByteRange) -> bool {
        self.find_overlap(range).is_some()
    }

    /// Returns whether `is_so` holds for a range that shares a byte with `range`. The cost grows
    /// with the number of overlapping ranges for which it does not hold.
    pub(crate) fn any_overlap(&self, range: ByteRange, mut is_so: impl FnMut(&V) -> bool) -> bool {
        self.any_below(self.root, range, &mut is_so)
    }

    fn any_below(&self, at: u32, range: ByteRange, is_so: &mut impl FnMut(&V) -> bool) -> bool {
        if at == NIL {
            return false;
        }
        let node = &self.nodes[at as usize];
        // Skips a subtree that ends before the range, and a right subtree that starts after it.
        node.furthest > range.start()
            && (node.range.overlaps(range) && is_so(&node.value)
                || self.any_below(node.left, range, is_so)
                || node.range.start() < range.end() && self.any_below(node.right, range, is_so))
    }

    /// Returns, of the ranges that end after `at`, the range that starts first.
    pub(crate) fn first_ending_after(&self, at: u64) -> Option<ByteRange> {
        let mut node = self.nodes.get(self.root as usize)?;
        loop {
            let left = self.nodes.get(node.left as usize);
            node = match left {
                Some(left) if left.furthest > at => left,
                _ if node.range.end() > at => return Some(node.range),
                _ => self.nodes.get(node.right as usize)?,
            };
        }
    }

    pub(crate) fn range(&self, key: Key) -> ByteRange {
        self.nodes[key.0 as usize].range
    }

    pub(crate) fn value_mut(&mut self, key: Key) -> &mut V {
        &mut self.nodes[key.0 as usize].value
    }

    /// Returns the smallest range that covers all ranges of the set.
    pub(crate) fn hull(&self) -> Option<ByteRange> {
        if self.root == NIL {
            return None;
        }
        let mut first = self.root;
        while self.nodes[first as usize].left != NIL {
            first = self.nodes[first as usize].left;
        }
        Some(ByteRange::between(
            self.nodes[first as usize].range.start(),
            self.nodes[self.root as usize].furthest,
        ))
    }

    /// Changes the value of every range that shares a byte with `range`.
    pub(crate) fn change_overlapping(&mut self, range: ByteRange, change: &mut impl FnMut(&mut V)) {
        self.change_below(self.root, range, change);
    }

    fn change_below(&mut self, at: u32, range: ByteRange, change: &mut impl FnMut(&mut V)) {
        // As in `any_below`.
        if at == NIL || self.nodes[at as usize].furthest <= range.start() {
            return;
        }
        let node = &mut self.nodes[at as usize];
        let (left, right) = (node.left, node.right);
        let starts_before_end = node.range.start() < range.end();
        if node.range.overlaps(range) {
            change(&mut node.value);
        }
        self.change_below(left, range, change);
        if starts_before_end {
            self.change_below(right, range, change);
        }
    }

    /// Visits every range that shares a byte with `range`, in the order of their starts.
    pub(crate) fn each_overlap(&self, range: ByteRange, visit: &mut impl FnMut(ByteRange)) {
        self.each_below(self.root, range, visit);
    }

    fn each_below(&self, at: u32, range: ByteRange, visit: &mut impl FnMut(ByteRange)) {
        // As in `any_below`.
        if at == NIL || self.nodes[at as usize].furthest <= range.start() {
            return;
        }
        let node = &self.nodes[at as usize];
        self.each_below(node.left, range, visit);
        if node.range.overlaps(range) {
            visit(node.range);
        }
        if node.range.start() < range.end() {
            self.each_below(node.right, range, visit);
        }
    }

    /// Returns the position in the order of the tree; the index tells equal starts apart.
    fn place(&self, index: u32) -> (u64, u32) {
        (self.nodes[index as usize].range.start(), index)
    }

    /// Splits a subtree into the nodes before `place`, and the rest.
    fn split(&mut self, tree: u32, place: (u64, u32)) -> (u32, u32) {
        if tree == NIL {
            return (NIL, NIL);
        }
        if self.place(tree) < place {
            let (before, after) = self.split(self.nodes[tree as usize].right, place);
            self.nodes[tree as usize].right = before;
            self.update(tree);
            (tree, after)
        } else {
            let (before, after) = self.split(self.nodes[tree as usize].left, place);
            self.nodes[tree as usize].left = after;
            self.update(tree);
            (before, tree)
        }
    }

    /// Joins two subtrees; all nodes of the first come before all nodes of the second.
    fn join(&mut self, before: u32, after: u32) -> u32 {
        if before == NIL {
            return after;
        }
        if after == NIL {
            return before;
        }
        if self.nodes[before as usize].priority > self.nodes[after as usize].priority {
            let right = self.nodes[before as usize].right;
            self.nodes[before as usize].right = self.join(right, after);
            self.update(before);
            before
        } else {
            let left = self.nodes[after as usize].left;
            self.nodes[after as usize].left = self.join(before, left);
            self.update(after);
            after
        }
    }

    fn update(&mut self, index: u32) {
        let Node {
            range, left, right, ..
        } = self.nodes[index as usize];
        let mut furthest = range.end();
        for child in [left, right] {
            if child != NIL {
                furthest = furthest.max(self.nodes[child as usize].furthest);
            }
        }
        self.nodes[index as usize].furthest = furthest;
    }

    fn next_priority(&mut self) -> u32 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 17;
        self.seed ^= self.seed << 5;
        self.seed
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u64, u64),
        Remove(usize),
        Find(u64, u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0..200_u64, 1..60_u64).prop_map(|(at, len)| Step::Insert(at, len)),
            2 => any::<usize>().prop_map(Step::Remove),
            3 => (0..220_u64, 1..30_u64).prop_map(|(at, len)| Step::Find(at, len)),
        ]
    }

    proptest! {
        #[test]
        fn agrees_with_a_list(steps in proptest::collection::vec(step(), 1..200)) {
            let mut set = Intervals::new();
            let mut list: Vec<(Key, ByteRange)> = Vec::new();
            for step in steps {
                match step {
                    Step::Insert(at, len) => {
                        let range = ByteRange::between(at, at + len);
                        list.push((set.insert(range, at), range));
                    }
                    Step::Remove(which) if !list.is_empty() => {
                        let (key, range) = list.swap_remove(which % list.len());
                        prop_assert_eq!(set.remove(key), range.start());
                    }
                    Step::Remove(_) => {}
                    Step::Find(at, len) => {
                        let range = ByteRange::between(at, at + len);
                        let found = set.find_overlap(range);
                        let expected = list.iter().any(|(_, other)| other.overlaps(range));
                        prop_assert_eq!(found.is_some(), expected);
                        let is_odd = |start: &u64| start % 2 == 1;
                        let expected = list
                            .iter()
                            .any(|(_, other)| other.overlaps(range) && is_odd(&other.start()));
                        prop_assert_eq!(set.any_overlap(range, is_odd), expected);
                        if let Some(key) = found {
                            let (_, other) = list.iter().find(|(known, _)| *known == key).unwrap();
                            prop_assert!(other.overlaps(range));
                        }
                    }
                }
                prop_assert_eq!(set.len(), list.len());
                let window = ByteRange::between(50, 120);
                let mut met = Vec::new();
                set.each_overlap(window, &mut |range| met.push(range.start()));
                let overlap = list.iter().filter(|(_, range)| range.overlaps(window));
                let mut starts: Vec<u64> = overlap.map(|(_, range)| range.start()).collect();
                starts.sort_unstable();
                prop_assert_eq!(met, starts);
                for at in (0..260).step_by(7) {
                    let later = list.iter().map(|(_, range)| *range);
                    let later = later.filter(|range| range.end() > at);
                    let first = later.map(|range| range.start()).min();
                    let found = set.first_ending_after(at);
                    prop_assert_eq!(found.map(ByteRange::start), first);
                    prop_assert!(found.map_or(true, |range| range.end() > at));
                }
                let hull = list.iter().map(|(_, range)| *range).reduce(ByteRange::hull);
                prop_assert_eq!(set.hull(), hull);
            }
        }
    }

    #[test]
    fn depth_stays_logarithmic_for_sorted_ranges() {
        let mut set = Intervals::new();
        let keys: Vec<_> = (0..100_000_u64)
            .map(|at| set.insert(ByteRange::between(at, at + 1), ()))
            .collect();
        fn depth(set: &Intervals<()>, at: u32) -> usize {
            if at == NIL {
                return 0;
            }
            let node = &set.nodes[at as usize];
            1 + depth(set, node.left).max(depth(set, node.right))
        }
        assert!(depth(&set, set.root) < 80);
        for key in keys {
            set.remove(key);
        }
        assert!(set.is_empty() && set.nodes.capacity() == 0);
    }
}
