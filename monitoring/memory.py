"""The dashboards of what is remembered: the cache of keys and values, and the restore store behind it."""

from monitoring.panels import Dashboard, Panel, Query
from monitoring.queries import or_none, share
from monitoring.reading import EVER, HERE, quantiles

EPOCHS, REPAIRS = HERE.grown("decisions", EVER, action="epoch"), HERE.grown("decisions", EVER, action="repair")
DECIDED = HERE.total(HERE.rate("decisions"))
RETURNED = HERE.total(HERE.grown("restores", EVER))

CACHE = Dashboard(
    "cache",
    "Longtake: cache",
    (
        Panel(
            "Bytes by attention type",
            "Keys and values of kept chunks.",
            "bytes",
            (Query(HERE.total(HERE.now("cache_bytes"), "type"), "{{type}}"),),
            stacked=True,
        ),
        Panel(
            "Bytes by role",
            "Why they are kept.",
            "bytes",
            (Query(HERE.total(HERE.now("cache_bytes"), "role"), "{{role}}"),),
            stacked=True,
        ),
        Panel(
            "Evictions",
            "Chunks that left the keep-set, by attention type.",
            "ops",
            (Query(HERE.total(HERE.rate("decisions", action="evict"), "type"), "{{type}}"),),
        ),
        Panel(
            "Restores in ten minutes",
            "Chunks that came back when a scene returned, by tier and verdict; lost ones are missing from the scene.",
            "short",
            (Query(HERE.total(HERE.grown("restores", EVER), "tier", "verdict"), "{{tier}}: {{verdict}}"),),
        ),
        Panel(
            "Epoch changes in ten minutes",
            "The position slots were used up, and kept chunks got new ones.",
            "short",
            (Query(or_none(HERE.total(EPOCHS), DECIDED), "epochs"),),
        ),
        Panel(
            "Drift of published chunks",
            "Distance from the scene's reference, in units of what is usual.",
            "short",
            quantiles("drift_score"),
        ),
        Panel(
            "Repair rungs",
            "Sessions on each rung of the repair ladder.",
            "short",
            (Query(HERE.total(HERE.now("repair_rung"), "rung"), "{{rung}}"),),
            stacked=True,
        ),
        Panel(
            "Repairs in ten minutes",
            "Steps up and down the ladder.",
            "short",
            (Query(or_none(HERE.total(REPAIRS), DECIDED), "changes of rung"),),
        ),
        Panel(
            "Decisions",
            "Of cache managers, by what they decided.",
            "ops",
            (Query(HERE.total(HERE.rate("decisions"), "action"), "{{action}}"),),
        ),
        Panel(
            "Time to bring chunks back",
            "Seconds per second, as plans predicted and as it was.",
            "short",
            (Query(HERE.total(HERE.rate("restore_seconds"), "what"), "{{what}}"),),
        ),
        Panel(
            "Prefetched",
            "Records by what became of their prefetch.",
            "ops",
            (Query(HERE.total(HERE.rate("prefetched"), "outcome"), "{{outcome}}"),),
        ),
        Panel(
            "Staging",
            "Prefetched or on the way, and its budget.",
            "bytes",
            (Query(HERE.total(HERE.now("staging_bytes"), "what"), "{{what}}"),),
        ),
    ),
)


def bytes_of_nodes(what: str) -> str:
    """One store a node: one that was lost is still told of for a while when the next one is there."""
    return HERE.total(f"max by (node, what) ({HERE.now('store_bytes', what=what)})", "what")


HELD = "bytes_held|disk_bytes_held|queued_bytes|vault_bytes_held"
BUDGETS = "budget_bytes|disk_budget_bytes|vault_budget_bytes"
HITS, MISSED = HERE.total(HERE.rate("store_hits")), HERE.total(HERE.rate("store_misses"))
BACK = HERE.total(HERE.grown("restores", EVER, verdict="rebuilt|rebuilt instead"))
STORE = Dashboard(
    "store",
    "Longtake: restore store",
    (
        Panel(
            "Bytes by tier",
            "Host memory (bytes_held), disk, on the way to disk (queued), and streams that are put away (vault).",
            "bytes",
            (Query(bytes_of_nodes(HELD), "{{what}}"),),
            stacked=True,
        ),
        Panel(
            "Budgets",
            "What each tier may hold; beyond it the least useful make room, and the vault refuses.",
            "bytes",
            (Query(bytes_of_nodes(BUDGETS), "{{what}}"),),
        ),
        Panel(
            "Hits by tier",
            "Fetches that the store answered.",
            "ops",
            (Query(HERE.total(HERE.rate("store_hits"), "what"), "{{what}}"),),
        ),
        Panel(
            "Hit rate",
            "Of what was asked of the store in this window, what it had.",
            "percentunit",
            (Query(f"{HITS} / ({HITS} + {MISSED})", "hits"),),
        ),
        Panel(
            "Rebuild rate",
            "Of the chunks that came back in ten minutes, those that were computed anew from latents.",
            "percentunit",
            (Query(share(BACK, RETURNED), "rebuilt"),),
        ),
        Panel(
            "Bandwidth",
            "Between generators and store, by direction and path: shared memory, NIXL, or within calls.",
            "Bps",
            (Query(HERE.total(HERE.rate("transfer_bytes"), "direction", "path"), "{{direction}}, {{path}}"),),
        ),
        Panel(
            "Verification failures in ten minutes",
            "What was read or came over was not what had been written; it was not used.",
            "short",
            (
                Query(
                    HERE.total(HERE.grown("store_misses", EVER, what="misses_damaged|misses_foreign"), "what"),
                    "{{what}}",
                ),
                Query(HERE.total(HERE.grown("transfer_failures", EVER), "what"), "at the generator: {{what}}"),
                Query(HERE.total(HERE.grown("store_transfers_failed", EVER), "what"), "at the store: {{what}}"),
            ),
        ),
        Panel(
            "Misses",
            "Fetches that the store could not answer, by reason.",
            "ops",
            (Query(HERE.total(HERE.rate("store_misses"), "what"), "{{what}}"),),
        ),
        Panel(
            "Records that made room, in ten minutes",
            "At a budget or quota. Without its latents a chunk cannot come back.",
            "short",
            (Query(HERE.total(HERE.grown("store_dropped", EVER), "what"), "{{what}}"),),
        ),
        Panel(
            "Not kept, in ten minutes",
            "Refused: too much was on its way. Not mirrored in time. Calls without an answer.",
            "short",
            (
                Query(HERE.total(HERE.grown("store_refused", EVER)), "refused"),
                Query(HERE.total(HERE.grown("store_unmirrored", EVER)), "not mirrored"),
                Query(HERE.total(HERE.grown("store_failures", EVER)), "no answer"),
            ),
        ),
        Panel(
            "Disk",
            "Degraded: 1 while a store works without its disk. Degradations so far. Files that could not be erased.",
            "short",
            (Query(HERE.total(HERE.now("store_degraded"), "what", "node"), "{{what}}, {{node}}"),),
        ),
        Panel(
            "Slots of the transport",
            "In the grave: given up, until it is certain that nobody writes there any more.",
            "short",
            (Query(HERE.total(HERE.now("transfer_slots"), "use"), "{{use}}"),),
            stacked=True,
        ),
        Panel(
            "Bytes in the grave",
            "Not used because a lost transfer may still touch them.",
            "bytes",
            (Query(HERE.total(HERE.now("transfer_graveyard_bytes")), "buried"),),
        ),
        Panel(
            "Within calls although there are slots",
            "Payloads by reason: all slots in use, too large for one, the store cannot reach them.",
            "ops",
            (Query(HERE.total(HERE.rate("transfer_inline"), "reason"), "{{reason}}"),),
        ),
        Panel(
            "Files removed when a disk was opened",
            "What was no record, by what it was.",
            "short",
            (Query(HERE.total(HERE.now("store_removed"), "what"), "{{what}}"),),
            needs="a disk",
        ),
    ),
)
