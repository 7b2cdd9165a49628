//! The queries. Each has an order, and sums of whole numbers only, so that its result is one text.

/// Statements that are measured together.
pub(crate) struct Query {
    pub(crate) name: &'static str,
    pub(crate) statements: &'static [&'static str],
}

pub(crate) const QUERIES: &[Query] = &[
    Query {
        name: "scan",
        statements: &[
            "SELECT count(*), sum(quantity), sum(price), min(shipped), max(shipped) FROM items",
        ],
    },
    Query {
        name: "filter",
        statements: &["SELECT count(*), sum(price) FROM items \
             WHERE shipped BETWEEN 400 AND 430 AND quantity < 10"],
    },
    Query {
        name: "group",
        statements: &[
            "SELECT status, quantity % 5 AS class, count(*), sum(price) FROM items \
             GROUP BY status, class ORDER BY status, class",
        ],
    },
    Query {
        name: "top",
        statements: &["SELECT part, sum(price) AS total FROM items \
             GROUP BY part ORDER BY total DESC, part LIMIT 10"],
    },
    Query {
        name: "strings",
        statements: &["SELECT status, count(*) FROM items \
             WHERE comment LIKE '%express%' GROUP BY status ORDER BY status"],
    },
    Query {
        name: "join",
        statements: &["SELECT orders.priority, count(*), sum(items.price) \
             FROM items JOIN orders ON items.order_id = orders.order_id \
             WHERE orders.placed < 200 GROUP BY orders.priority ORDER BY orders.priority"],
    },
    Query {
        name: "two joins",
        statements: &[
            "SELECT customers.region, count(*), sum(items.quantity) FROM items \
             JOIN orders ON items.order_id = orders.order_id \
             JOIN customers ON orders.customer_id = customers.customer_id \
             WHERE items.shipped > 2400 GROUP BY customers.region ORDER BY customers.region",
        ],
    },
    Query {
        name: "points",
        statements: &[
            "SELECT * FROM items WHERE order_id = 17 ORDER BY line",
            "SELECT * FROM items WHERE order_id = 1017 ORDER BY line",
            "SELECT * FROM items WHERE order_id = 20017 ORDER BY line",
            "SELECT * FROM items WHERE order_id = 300017 ORDER BY line",
            "SELECT * FROM items WHERE order_id = 1000017 ORDER BY line",
            "SELECT * FROM orders WHERE order_id = 170",
            "SELECT * FROM orders WHERE order_id = 200170",
            "SELECT * FROM customers WHERE customer_id = 77",
        ],
    },
];
