"""A collection of the Hub that names all repositories of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shardmerge.sources.hub import client  # before huggingface_hub, which it sets up

# isort: split
from huggingface_hub import Collection

from shardmerge.base.errors import UserError


@dataclass(frozen=True)
class Collected:
    """What became of a collection.

    Args:
        url: Its page.
        slug: Its name in addresses.
        repositories: That it has now, in its order.
    """

    url: str
    slug: str
    repositories: tuple[str, ...]


def collect_repositories(
    title: str,
    repositories: Sequence[str],
    *,
    private: bool = True,
    progress: client.Say | None = None,
) -> Collected:
    """Put repositories into a collection, made if it does not exist; what is in it stays.

    Args:
        title: Of the collection; it belongs to the owner of the first repository. Or the slug of
            one that is there, ``owner/title-0123456789abcdef01234567``.
        repositories: Names of repositories, ``owner/name``.
        private: Whether a new one is made private.
        progress: Receives lines for the log.

    Returns:
        The collection as it is now.

    Raises:
        UserError: If the Hub refuses it.
    """
    api, say = client.api(), progress or (lambda line: None)
    try:
        found = client.retrying(lambda: _existing(title, repositories, private), title)
        for repo in repositories:
            if repo not in _repositories(found):
                found = api.add_collection_item(found.slug, repo, "model", exists_ok=True)
                say(f"{repo}: now in the collection {found.title!r}")
    except client.HUB_ERRORS as error:
        raise UserError(
            f"could not be made of the published repositories ({client.brief(error)})",
            f"collection {title!r}",
            "They are published all the same. Run it again for the collection.",
        ) from None
    return Collected(client.mask(found.url), found.slug, tuple(_repositories(found)))


def _existing(title: str, repositories: Sequence[str], private: bool) -> Collection:
    if "/" in title:
        return client.api().get_collection(title)
    owner = repositories[0].partition("/")[0]
    return client.api().create_collection(title, namespace=owner, private=private, exists_ok=True)


def _repositories(found: Collection) -> list[str]:
    return [item.item_id for item in found.items if item.item_type == "model"]
