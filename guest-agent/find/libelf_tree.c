/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Only for linking statically with libelf 0.192, as Debian 13 has it: its archive was made without the functions by which
 * it keeps the raw chunks of one Elf in a tree (elfutils bug 32293; 0.193 has them). Here they are, over the C library's
 * tsearch(). A tree begins with the root that tsearch() wants; what may follow is a lock, which an Elf that one thread
 * uses does not need.
 */
#include <search.h>
#include <stddef.h>

typedef struct PfElfTree {
	void *root;
} PfElfTree;

typedef int (*PfElfCompare)(const void *, const void *);

void *eu_tsearch(const void *key, PfElfTree *tree, PfElfCompare compare);
void *eu_tdelete(const void *key, PfElfTree *tree, PfElfCompare compare);
void eu_search_tree_init(PfElfTree *tree);
void eu_search_tree_fini(PfElfTree *tree, void (*free_node)(void *));

void *eu_tsearch(const void *key, PfElfTree *tree, PfElfCompare compare)
{
	return tsearch(key, &tree->root, compare);
}

void *eu_tdelete(const void *key, PfElfTree *tree, PfElfCompare compare)
{
	return tdelete(key, &tree->root, compare);
}

void eu_search_tree_init(PfElfTree *tree)
{
	tree->root = NULL;
}

void eu_search_tree_fini(PfElfTree *tree, void (*free_node)(void *))
{
	tdestroy(tree->root, free_node);
	tree->root = NULL;
}
