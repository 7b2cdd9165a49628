//! Models of blocks that are delisted while their owner reads.

use super::*;

/// A reader and a writer, and a thread that delists the reader's block.
fn delisting<F: Fences>() {
    check(|blocks| {
        let file = File::<F>::new(1, blocks);
        let block = blocks.claim::<Right>();
        let reader = spawn_read(&file, block);
        let delister = thread::spawn(move || blocks.delist::<F>());
        file.write();
        reader.join().unwrap();
        delister.join().unwrap();
    });
}

/// A reader, and a writer that delists the reader's block before it writes.
fn delisting_first<F: Fences>() {
    check(|blocks| {
        let file = File::<F>::new(1, blocks);
        let block = blocks.claim::<Right>();
        let reader = spawn_read(&file, block);
        blocks.delist::<F>();
        file.write();
        reader.join().unwrap();
    });
}

/// A delisted block that is delisted again, with a reader that reads twice.
fn delisting_again<F: Fences>() {
    check(|blocks| {
        let file = File::<F>::new(1, blocks);
        let block = blocks.claim::<Right>();
        blocks.delist::<F>();
        let delister = thread::spawn(move || blocks.delist::<F>());
        let reader = {
            let file = file.clone();
            thread::spawn(move || {
                file.read(block);
                file.read(block);
            })
        };
        let written = file.write();
        reader.join().unwrap();
        delister.join().unwrap();
        assert!(written || file.has_restarted(), "lost wake-up");
    });
}

#[test]
fn a_block_may_be_delisted() {
    fences!(Light, fn light_again() {});
    delisting::<Light>();
    delisting_first::<Light>();
    delisting_again::<Right>();
}

needed!(
    without_the_fence_before_delisting,
    delisting,
    fn heavy_to_delist() -> io::Result<()> {
        Ok(())
    }
);
needed!(
    without_the_fence_after_listing,
    delisting_again,
    fn after_listing() {}
);
needed!(
    without_rechecking_the_unlisted_flag,
    delisting_first,
    const RECHECKS_UNLISTED_FLAG: bool = false;
);
needed! {
    without_the_order_of_clearing_bits,
    delisting,
    const DELIST: Ordering = Ordering::Relaxed;
    fn light_again() {}
}
needed! {
    without_the_order_of_loading_bits,
    delisting,
    const LISTED: Ordering = Ordering::Relaxed;
    fn light_again() {}
}
