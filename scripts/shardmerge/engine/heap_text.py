"""The text of native code that selects by a heap, as C++'s library does.

It does so where few elements are wanted, and where parts of a quicksort fall apart.
"""

from __future__ import annotations

from shardmerge.engine.quick_choice_text import key_ends, numbers_lines


def heap_text() -> str:
    """Return the function that brings the least numbers of a part to its beginning.

    It makes a heap of the first, if they are none yet, and puts in what is less than its greatest.
    Then it sorts the heap if that is asked for.
    """
    ends = {name: "\n".join(key_ends(name, f"%{name}")) for name in ("most", "b", "value")}
    return _TEXT.format(numbers="\n".join(numbers_lines()), **ends)


#: ``adjust`` puts a value into a heap from a hole on: down to its end, and up from there.
_TEXT = """
define void @merge(ptr %output, ptr %leaves, i64 %count, ptr %constants, ptr %more) {{
entry:
{numbers}
  %middle.at = getelementptr i64, ptr %more, i64 3
  %middle = load i64, ptr %middle.at
  %sorts.at = getelementptr i64, ptr %more, i64 4
  %sorts.long = load i64, ptr %sorts.at
  %sorts = icmp ne i64 %sorts.long, 0
  %is.made.at = getelementptr i64, ptr %more, i64 5
  %is.made.long = load i64, ptr %is.made.at
  %is.made = icmp ne i64 %is.made.long, 0
  %is.few = icmp ult i64 %middle, 2
  %is.one = or i1 %is.few, %is.made
  %last.two = sub i64 %middle, 2
  %parent.first = lshr i64 %last.two, 1
  br i1 %is.one, label %select, label %make
make:
  %parent = phi i64 [%parent.first, %entry], [%parent.less, %made]
  %parent.at = getelementptr i32, ptr %output, i64 %parent
  %parent.value = load i32, ptr %parent.at
  br label %adjust
made:
  %parent.less = sub i64 %aux, 1
  %made.all = icmp eq i64 %aux, 0
  br i1 %made.all, label %select, label %make
select:
  %i = phi i64 [%middle, %entry], [%middle, %made], [%i.next, %skip], [%aux.next, %put]
  %i.more = icmp ult i64 %i, %count
  br i1 %i.more, label %look, label %sort.first
look:
  %i.at = getelementptr i32, ptr %output, i64 %i
  %i.value = load i32, ptr %i.at
  %most = load i32, ptr %output
{most}
  %i.less = icmp ult i32 %i.value, %most.low
  br i1 %i.less, label %take, label %skip
skip:
  %i.next = add i64 %i, 1
  br label %select
take:
  store i32 %most, ptr %i.at
  br label %adjust
put:
  %aux.next = add i64 %aux, 1
  br label %select
sort.first:
  br i1 %sorts, label %sort, label %end
sort:
  %left = phi i64 [%middle, %sort.first], [%aux, %sorted]
  %left.more = icmp ugt i64 %left, 1
  br i1 %left.more, label %pop, label %end
pop:
  %pop.i = sub i64 %left, 1
  %pop.at = getelementptr i32, ptr %output, i64 %pop.i
  %pop.value = load i32, ptr %pop.at
  %pop.most = load i32, ptr %output
  store i32 %pop.most, ptr %pop.at
  br label %adjust
sorted:
  br label %sort
adjust:
  %top = phi i64 [%parent, %make], [0, %take], [0, %pop]
  %size = phi i64 [%middle, %make], [%middle, %take], [%pop.i, %pop]
  %value = phi i32 [%parent.value, %make], [%i.value, %take], [%pop.value, %pop]
  %aux = phi i64 [%parent, %make], [%i, %take], [%pop.i, %pop]
  %mode = phi i32 [0, %make], [1, %take], [2, %pop]
{value}
  %size.less = sub i64 %size, 1
  %inner = lshr i64 %size.less, 1
  br label %down
down:
  %hole = phi i64 [%top, %adjust], [%child, %moved]
  %has.two = icmp ult i64 %hole, %inner
  br i1 %has.two, label %moved, label %bottom
moved:
  %hole.twice = shl i64 %hole, 1
  %right = add i64 %hole.twice, 2
  %left.child = add i64 %hole.twice, 1
  %right.at = getelementptr i32, ptr %output, i64 %right
  %left.at = getelementptr i32, ptr %output, i64 %left.child
  %a = load i32, ptr %right.at
  %b = load i32, ptr %left.at
{b}
  %right.less = icmp ult i32 %a, %b.low
  %child = select i1 %right.less, i64 %left.child, i64 %right
  %child.value = select i1 %right.less, i32 %b, i32 %a
  %hole.at = getelementptr i32, ptr %output, i64 %hole
  store i32 %child.value, ptr %hole.at
  br label %down
bottom:
  %odd = and i64 %size, 1
  %is.even = icmp eq i64 %odd, 0
  %size.two = sub i64 %size, 2
  %alone.parent = lshr i64 %size.two, 1
  %is.parent = icmp eq i64 %hole, %alone.parent
  %has.one = and i1 %is.even, %is.parent
  br i1 %has.one, label %alone, label %up
alone:
  %alone.i = sub i64 %size, 1
  %alone.at = getelementptr i32, ptr %output, i64 %alone.i
  %alone.value = load i32, ptr %alone.at
  %alone.hole = getelementptr i32, ptr %output, i64 %hole
  store i32 %alone.value, ptr %alone.hole
  br label %up
up:
  %place = phi i64 [%hole, %bottom], [%alone.i, %alone], [%above, %raised]
  %place.at = getelementptr i32, ptr %output, i64 %place
  %is.inside = icmp ugt i64 %place, %top
  br i1 %is.inside, label %compare, label %done
compare:
  %place.less = sub i64 %place, 1
  %above = lshr i64 %place.less, 1
  %above.at = getelementptr i32, ptr %output, i64 %above
  %above.value = load i32, ptr %above.at
  %above.less = icmp ult i32 %above.value, %value.low
  br i1 %above.less, label %raised, label %done
raised:
  store i32 %above.value, ptr %place.at
  br label %up
done:
  store i32 %value, ptr %place.at
  switch i32 %mode, label %sorted [i32 0, label %made i32 1, label %put]
end:
  ret void
}}
"""
